package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Namespace is where Clarion's own objects are.
const Namespace = "clarion-system"

// ClarionOptions says how to run Clarion. The zero value runs it as config/default does.
type ClarionOptions struct {
	ControllerArgs, SpeakerArgs []string // further flags
	Race                        bool     // build with the race detector
	Standby                     bool     // two controllers, one of which leads
}

// Clarion is Clarion running in a lab: a controller in the control plane's namespace and a speaker in each node's.
type Clarion struct {
	Controller *Process
	Standby    *Process            // the other controller, if there is one
	Speakers   map[string]*Process // by node
}

// StartClarion builds the three programs, applies config/default and does itself what a kubelet would do with the
// Deployment and the DaemonSet in it: it starts the controller and the speakers with the flags, the user and the
// capabilities of the manifests, each with a token of its own ServiceAccount, so that the rights in config/ are the
// rights they have. A speaker's token names its node. It does not wait for them to have anything to announce.
func (l *Lab) StartClarion(ctx context.Context, o ClarionOptions) (*Clarion, error) {
	bin := filepath.Join(l.state, "bin")
	packages := []string{"./controller", "./speaker"}
	if o.Race {
		packages = append([]string{"-race"}, packages...)
	}
	var workloads map[string]corev1.PodSpec
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := l.buildGo(gctx, bin, packages...); err != nil {
			return err
		}
		// The plug-in's name in bin is taken by its wrapper, with which kubectl finds it and it finds the cluster.
		return l.buildGo(gctx, filepath.Join(bin, "plugin"), "./kubectl-clarion")
	})
	g.Go(func() (err error) {
		workloads, err = l.applyConfig(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := l.writeWrapper("kubectl-clarion", filepath.Join(bin, "plugin", "kubectl-clarion")); err != nil {
		return nil, err
	}
	l.pr.step("Clarion built, config/default applied")
	c := &Clarion{Speakers: map[string]*Process{}}
	var err error
	if c.Controller, err = l.startWorkload(ctx, workloads, "controller", "controller", control, o.ControllerArgs); err != nil {
		return nil, err
	}
	if o.Standby {
		// It is on the same host, so that it needs other ports.
		args := append(slices.Clone(o.ControllerArgs), "--metrics-bind-address=127.0.0.1:9122", "--health-probe-bind-address=127.0.0.1:8082")
		if c.Standby, err = l.startWorkload(ctx, workloads, "controller", "standby", control, args); err != nil {
			return nil, err
		}
	}
	for _, node := range l.Nodes() {
		if c.Speakers[node], err = l.startWorkload(ctx, workloads, "speaker", "speaker", node, o.SpeakerArgs); err != nil {
			return nil, err
		}
	}
	l.pr.step("controller and %d speakers started", len(c.Speakers))
	return c, nil
}

// startWorkload runs a program of Clarion on a host as its pod template says, as the process called as.
func (l *Lab) startWorkload(ctx context.Context, all map[string]corev1.PodSpec, name, as, host string, args []string) (*Process, error) {
	pod, ok := all[name]
	if !ok || len(pod.Containers) != 1 {
		return nil, fmt.Errorf("config/default has no workload %s of one container", name)
	}
	node := host
	if host == control {
		node = ""
	}
	kubeconfig, err := l.KubeconfigOn(ctx, "system:serviceaccount:"+Namespace+":"+pod.ServiceAccountName, node)
	if err != nil {
		return nil, err
	}
	command := append(privileges(pod), filepath.Join(l.state, "bin", name), "--kubeconfig="+kubeconfig)
	command = append(append(command, pod.Containers[0].Args...), args...)
	return l.Start(host, as, command, "NODE_NAME="+node, "POD_NAMESPACE="+Namespace)
}

// privileges is the command that runs another with a container's user and capabilities, and no way to more.
func privileges(pod corev1.PodSpec) []string {
	caps := "-all"
	if sc := pod.Containers[0].SecurityContext; sc != nil && sc.Capabilities != nil {
		for _, c := range sc.Capabilities.Add {
			caps += ",+" + strings.ToLower(string(c))
		}
	}
	command := []string{"setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=" + caps}
	if sc := pod.SecurityContext; sc != nil && sc.RunAsUser != nil && *sc.RunAsUser != 0 {
		id := strconv.FormatInt(*sc.RunAsUser, 10)
		command = append(command, "--reuid="+id, "--regid="+id, "--clear-groups")
	}
	return command
}

// applyConfig applies config/default and returns the pod templates of the workloads in it, which it does not apply:
// there is no kubelet to run them.
func (l *Lab) applyConfig(ctx context.Context) (map[string]corev1.PodSpec, error) {
	all, err := l.run(control, l.kubectl(ctx, "kustomize", filepath.Join(l.root, "config", "default")))
	if err != nil {
		return nil, err
	}
	workloads := map[string]corev1.PodSpec{}
	var kept []string
	for dec := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(all))); ; {
		doc, err := dec.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("config/default: %w", err)
		}
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct{ Template corev1.PodTemplateSpec }
		}
		if err := yaml.Unmarshal(doc, &object); err != nil {
			return nil, fmt.Errorf("config/default: %w", err)
		}
		if object.Kind == "Deployment" || object.Kind == "DaemonSet" {
			workloads[object.Metadata.Name] = object.Spec.Template.Spec
			continue
		}
		kept = append(kept, string(doc))
	}
	return workloads, l.Apply(ctx, strings.Join(kept, "\n---\n"))
}
