{{/* A file of config/ with the release's namespace: (list $ path). */}}
{{- define "clarion.file" -}}
{{- $root := index . 0 -}}
{{- $root.Files.Get (printf "files/%s" (index . 1)) | replace "clarion-system" $root.Release.Namespace -}}
{{- end -}}

{{- define "clarion.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* A Deployment or DaemonSet with what both programs' values say: (dict "root" $ "object" … "values" …
     "classes" the flags that say whose Services are served). */}}
{{- define "clarion.workload" -}}
{{- $root := .root -}}
{{- $v := .values -}}
{{- $template := .object.spec.template -}}
{{- $pod := $template.spec -}}
{{- $c := index $pod.containers 0 -}}
{{- $_ := set $c "image" (include "clarion.image" $root) -}}
{{- with $root.Values.image.pullPolicy }}{{ $_ := set $c "imagePullPolicy" . }}{{ end -}}
{{- with $root.Values.imagePullSecrets }}{{ $_ := set $pod "imagePullSecrets" . }}{{ end -}}
{{- $args := $c.args -}}
{{- with .classes }}{{ $args = concat $args . }}{{ end -}}
{{- if ne $root.Values.logLevel "INFO" }}{{ $args = append $args (printf "--log-level=%s" $root.Values.logLevel) }}{{ end -}}
{{- $port := $v.metricsPort | default 9120 | int -}}
{{- if $root.Values.monitoring.enabled -}}
{{- $args = concat $args (list (printf "--metrics-bind-address=:%d" $port) "--metrics-secure") -}}
{{- else if ne $port 9120 -}}
{{- $args = append $args (printf "--metrics-bind-address=127.0.0.1:%d" $port) -}}
{{- end -}}
{{- if not (kindIs "invalid" $v.proxyHealthURL) }}{{ $args = append $args (printf "--proxy-health-url=%s" $v.proxyHealthURL) }}{{ end -}}
{{- with $v.membersPort }}{{ $args = append $args (printf "--members-port=%d" (int .)) }}{{ end -}}
{{- $_ := set $c "args" (concat $args $v.extraArgs) -}}
{{- range $p := $c.ports -}}
{{- if eq $p.name "metrics" }}{{ $_ := set $p "containerPort" $port }}{{ end -}}
{{- if and $v.membersPort (hasPrefix "members-" $p.name) }}{{ $_ := set $p "containerPort" (int $v.membersPort) }}{{ end -}}
{{- end -}}
{{- with $v.env }}{{ $_ := set $c "env" (concat $c.env .) }}{{ end -}}
{{- with $v.resources }}{{ $_ := set $c "resources" . }}{{ end -}}
{{- with $v.nodeSelector }}{{ $_ := set $pod "nodeSelector" (merge (deepCopy .) $pod.nodeSelector) }}{{ end -}}
{{- range $key := list "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" -}}
{{- with get $v $key }}{{ $_ := set $pod $key . }}{{ end -}}
{{- end -}}
{{- with $v.podLabels }}{{ $_ := set $template.metadata "labels" (merge (deepCopy $template.metadata.labels) .) }}{{ end -}}
{{- with $v.podAnnotations }}{{ $_ := set $template.metadata "annotations" . }}{{ end -}}
{{- toYaml .object -}}
{{- end -}}
