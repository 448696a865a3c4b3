package config

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const monitoring = "components/monitoring/"

// rules are the alerts, as Prometheus reads them.
type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func alerts(t *testing.T) rules {
	t.Helper()
	b, err := os.ReadFile(monitoring + "alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var o struct{ Spec rules }
	if err := yaml.Unmarshal(b, &o); err != nil || len(o.Spec.Groups) == 0 {
		t.Fatalf("no alerts: %v", err)
	}
	return o.Spec
}

// promtool checks rules, or runs their tests.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Each alert says how bad it is, what it is about, and where the document explains it.
func TestAlertsSayWhatToDo(t *testing.T) {
	page, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range alerts(t).Groups[0].Rules {
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", r.Alert, s)
		}
		if r.Annotations["summary"] == "" {
			t.Errorf("%s: no summary", r.Alert)
		}
		if want := "https://github.com/clarionlb/clarion/blob/main/docs/troubleshooting.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
		if !strings.Contains(string(page), "\n### "+r.Alert+"\n") {
			t.Errorf("docs/troubleshooting.md has no part for %s", r.Alert)
		}
	}
}

// Each alert rings while the series are as they are in a fault, and no longer than that; it does not ring for what only
// looks like one.
func TestAlertsRing(t *testing.T) {
	type labels = map[string]string
	for _, tt := range []struct {
		alert   string
		series  map[string]string // values, a minute each: the fault is over at minute 30
		labels  labels            // of the alert, beside its severity
		summary string
		never   bool
	}{
		{"ClarionServiceWithoutAddress", map[string]string{`clarion_services{condition="Allocated",status="False",reason="PoolExhausted"}`: "2x29 0x30"}, labels{"reason": "PoolExhausted"},
			"2 Services have no address: PoolExhausted. kubectl clarion status", false},
		{"ClarionServiceNotAnnounced", map[string]string{`clarion_services{condition="Announced",status="False",reason="SessionDown"}`: "1x29 0x30"}, labels{"reason": "SessionDown"},
			"1 Services are not announced: SessionDown. kubectl clarion status", false},
		{"ClarionServiceNotAnnounced", map[string]string{`clarion_services{condition="Announced",status="False",reason="NoReadyEndpoint"}`: "1x60"}, nil, "", true},
		{"ClarionObjectNotReady", map[string]string{`clarion_config_ready{kind="BGPPeer",name="tor1"}`: "0x29 1x30"}, labels{"kind": "BGPPeer", "name": "tor1"},
			"BGPPeer tor1 is not in use as written. kubectl describe it", false},
		{"ClarionPoolNearlyFull", map[string]string{`clarion_pool_addresses{pool="lan",family="IPv4"}`: "100x60", `clarion_pool_addresses_available{pool="lan",family="IPv4"}`: "5x29 50x30"},
			labels{"pool": "lan", "family": "IPv4"}, "Pool lan has 5% of its IPv4 addresses left", false},
		{"ClarionPoolNearlyFull", map[string]string{ // of one address, which is in use, and of none
			`clarion_pool_addresses{pool="one",family="IPv4"}`: "1x60", `clarion_pool_addresses_available{pool="one",family="IPv4"}`: "0x60",
			`clarion_pool_addresses{pool="one",family="IPv6"}`: "0x60", `clarion_pool_addresses_available{pool="one",family="IPv6"}`: "0x60"}, nil, "", true},
		{"ClarionAddressQuarantined", map[string]string{`clarion_pool_addresses_quarantined{pool="lan",family="IPv4"}`: "1x29 0x30"}, labels{"pool": "lan", "family": "IPv4"},
			"A foreign host on the local network uses IPv4 addresses of pool lan", false},
		{"ClarionAddressConflict", map[string]string{`clarion_layer2_conflicts{pod="speaker-a",address="192.0.2.200"}`: "1x29 0x30"}, labels{"pod": "speaker-a", "address": "192.0.2.200"},
			"A foreign host on the local network claims 192.0.2.200, as speaker-a hears. kubectl clarion trace 192.0.2.200", false},
		{"ClarionSessionDown", map[string]string{`clarion_bgp_session_up{pod="speaker-a",peer="tor1"}`: "0x29 1x30"}, labels{"pod": "speaker-a", "peer": "tor1"},
			"speaker-a has no BGP session with tor1. kubectl clarion explain peer tor1", false},
		{"ClarionSessionFlaps", map[string]string{`clarion_bgp_session_established_total{pod="speaker-a",peer="tor1"}`: "0+1x29 29x30"}, labels{"pod": "speaker-a", "peer": "tor1"},
			"The BGP session of speaker-a with tor1 comes and goes", false},
		{"ClarionSpeakersDisagree", map[string]string{`clarion_speaker_members{pod="speaker-a"}`: "2x60", `clarion_speaker_members{pod="speaker-b"}`: "1x29 2x30"}, labels{},
			"Speakers do not all see each other: TCP and UDP port 7946 among the nodes", false},
		{"ClarionNodeGated", map[string]string{`clarion_speaker_gated{pod="speaker-a"}`: "1x29 0x30"}, labels{"pod": "speaker-a"},
			"The node of speaker-a attracts no traffic: its Service proxy is unhealthy, or it is being drained", false},
		{"ClarionDown", map[string]string{`up{namespace="clarion-system",pod="speaker-a"}`: "0x29 1x30"}, labels{"namespace": "clarion-system", "pod": "speaker-a"},
			"speaker-a does not answer", false},
		{"ClarionNoLeader", map[string]string{`leader_election_master_status{name="clarion-controller",pod="a"}`: "0x29 1x30"}, labels{},
			"No controller leads: new Services get no address", false},
	} {
		t.Run(tt.alert, func(t *testing.T) {
			var r rule
			var all rules
			for _, g := range alerts(t).Groups {
				for _, x := range g.Rules {
					if x.Alert == tt.alert {
						r = x
					}
				}
			}
			if r.Alert == "" {
				t.Fatal("there is no such alert")
			}
			all.Groups = append(all.Groups, struct {
				Name  string `json:"name"`
				Rules []rule `json:"rules"`
			}{"clarion", []rule{r}})
			var input []map[string]string
			for series, values := range tt.series {
				input = append(input, map[string]string{"series": series, "values": values})
			}
			expect := []any{}
			if !tt.never {
				with := labels{"severity": r.Labels["severity"]}
				for k, v := range tt.labels {
					with[k] = v
				}
				expect = append(expect, map[string]any{"exp_labels": with, "exp_annotations": labels{"summary": tt.summary, "runbook_url": r.Annotations["runbook_url"]}})
			}
			dir := t.TempDir()
			write := func(name string, o any) string {
				b, err := yaml.Marshal(o)
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, b, 0o644); err != nil {
					t.Fatal(err)
				}
				return path
			}
			rulesFile := write("rules.yaml", all)
			promtool(t, "check", "rules", "--lint=all", "--lint-fatal", rulesFile)
			promtool(t, "test", "rules", write("test.yaml", map[string]any{
				"rule_files": []string{rulesFile}, "evaluation_interval": "1m",
				"tests": []any{map[string]any{
					"interval": "1m", "input_series": input,
					"alert_rule_test": []any{
						map[string]any{"eval_time": "25m", "alertname": tt.alert, "exp_alerts": expect},
						map[string]any{"eval_time": "55m", "alertname": tt.alert, "exp_alerts": []any{}},
					},
				}},
			}))
		})
	}
	// And there is a row for each.
	b, err := os.ReadFile("alerts_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range alerts(t).Groups[0].Rules {
		if !strings.Contains(string(b), `{"`+r.Alert+`", map`) {
			t.Errorf("no row makes %s ring", r.Alert)
		}
	}
}

// Panels ask for metrics that are served, in words that Prometheus understands, and each metric has a panel.
func TestDashboards(t *testing.T) {
	files, err := filepath.Glob(monitoring + "grafana/*.json")
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	var queries rules
	queries.Groups = append(queries.Groups, struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	}{Name: "panels"})
	shown, uids := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			UID, Title string
			Panels     []struct {
				ID         int
				Title      string
				Datasource struct{ UID string }
				Targets    []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if d.UID == "" || uids[d.UID] || d.Title == "" || len(d.Panels) == 0 {
			t.Errorf("%s: uid %q, title %q, %d panels", f, d.UID, d.Title, len(d.Panels))
		}
		uids[d.UID] = true
		for _, p := range d.Panels {
			if p.Title == "" || len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
				t.Errorf("%s: panel %d: %+v", f, p.ID, p)
			}
			for _, q := range p.Targets {
				queries.Groups[0].Rules = append(queries.Groups[0].Rules, rule{Alert: fmt.Sprintf("Panel%d", len(queries.Groups[0].Rules)), Expr: q.Expr})
				for _, m := range regexp.MustCompile(`\bclarion_[a-z0-9_]+`).FindAllString(q.Expr, -1) {
					shown[strings.TrimSuffix(m, "_bucket")] = true
				}
			}
		}
	}
	served := map[string]bool{}
	for _, f := range []string{"../controller/metrics.go", "../speaker/metrics.go"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`"(clarion_[a-z0-9_]+)"`).FindAllStringSubmatch(string(b), -1) {
			served[m[1]] = true
		}
	}
	for m := range shown {
		if !served[m] {
			t.Errorf("nobody serves %s", m)
		}
	}
	for m := range served {
		if !shown[m] && m != "clarion_bfd_session_down_total" { // whose session's state is shown
			t.Errorf("no panel shows %s", m)
		}
	}
	b, err := yaml.Marshal(queries)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "panels.yaml")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}
