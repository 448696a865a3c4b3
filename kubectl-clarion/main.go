// Command kubectl-clarion is a kubectl plug-in that says what Clarion does in a cluster, and why not more. It reads what
// the API holds and nothing else, decides with the code that the speakers decide with, and writes nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/version"
)

const usage = `What Clarion does in this cluster, and why not more.

  kubectl clarion status                         pools, speakers, sessions, and what is wrong
  kubectl clarion explain svc [NAMESPACE/]NAME   why a Service is or is not reachable from outside

flags:
`

// connect returns what reads the cluster, and the namespace to take where none is given.
type connect func(kubeconfig, context string) (r client.Reader, namespace string, err error)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, dial)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubectl clarion:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, w io.Writer, connect connect) error {
	flags := flag.NewFlagSet("kubectl clarion", flag.ContinueOnError)
	flags.SetOutput(w)
	flags.Usage = func() {
		fmt.Fprint(w, usage)
		flags.PrintDefaults()
	}
	kubeconfig := flags.String("kubeconfig", "", "`file` that says how to reach the cluster (default $KUBECONFIG, ~/.kube/config)")
	kubecontext := flags.String("context", "", "`name` of the context in that file")
	var namespace string
	flags.StringVar(&namespace, "namespace", "", "`namespace` of a Service that is given by its name alone")
	flags.StringVar(&namespace, "n", "", "short for --namespace")
	version.Flag(flags, "kubectl-clarion")
	var words []string
	for len(args) > 0 { // flags may stand between the words
		if err := flags.Parse(args); err != nil {
			return err
		}
		if args = flags.Args(); len(args) > 0 {
			words, args = append(words, args[0]), args[1:]
		}
	}

	switch {
	case len(words) == 0:
		flags.Usage()
		return flag.ErrHelp
	case len(words) == 1 && words[0] == "status":
		r, _, err := connect(*kubeconfig, *kubecontext)
		if err != nil {
			return err
		}
		c, err := load(ctx, r)
		if err != nil {
			return err
		}
		return writeStatus(w, c)
	case len(words) == 3 && words[0] == "explain" && isService(words[1]):
		r, ns, err := connect(*kubeconfig, *kubecontext)
		if err != nil {
			return err
		}
		if namespace != "" {
			ns = namespace
		}
		key := client.ObjectKey{Namespace: ns, Name: words[2]}
		if before, after, ok := strings.Cut(words[2], "/"); ok {
			key = client.ObjectKey{Namespace: before, Name: after}
		}
		c, err := load(ctx, r)
		if err != nil {
			return err
		}
		svc := c.services[key]
		if c.hidden["Service"] != nil { // perhaps just not all of them
			svc = &corev1.Service{}
			if err := r.Get(ctx, key, svc); err != nil {
				return err
			}
		}
		if svc == nil {
			return fmt.Errorf("there is no Service %s", key)
		}
		return writeExplanation(w, c, svc)
	}
	return fmt.Errorf("unknown command %q: want status, or explain svc NAMESPACE/NAME", strings.Join(words, " "))
}

func isService(word string) bool {
	switch word {
	case "svc", "service", "services":
		return true
	}
	return false
}

// dial reads the cluster that a kubeconfig file points to.
func dial(kubeconfig, context string) (client.Reader, string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context})
	namespace, _, err := cfg.Namespace()
	if err != nil {
		return nil, "", err
	}
	rest, err := cfg.ClientConfig()
	if err != nil {
		return nil, "", err
	}
	rest.QPS = -1 // a dozen requests, all at once
	scheme, err := newScheme()
	if err != nil {
		return nil, "", err
	}
	c, err := client.New(rest, client.Options{Scheme: scheme})
	return c, namespace, err
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(clientgoscheme.AddToScheme(scheme), v1beta1.AddToScheme(scheme))
}
