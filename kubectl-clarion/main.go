// Command kubectl-clarion is a kubectl plug-in that says what Clarion does in a cluster, and why not more. It reads what
// the API holds, decides with the code that the controller and the speakers decide with, and writes nothing.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/version"
)

// exit is a code to end with, when what there is to say has been said.
type exit int

// The codes that scripts can use. Whatever keeps a command from its answer ends it with the last of them.
const (
	problemsFound exit = 1
	couldNotTell  exit = 2
)

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// connection is a cluster that can be read.
type connection struct {
	client.Reader
	config    *rest.Config
	namespace string    // to take where none is given
	pods      podReader // nil when they cannot be asked
	dump      *about    // what is read, if it is one
}

// app is what all commands share.
type app struct {
	genericiooptions.IOStreams
	flags   *genericclioptions.ConfigFlags
	connect func(*genericclioptions.ConfigFlags) (*connection, error)
	ask     asker
	now     func() time.Time
	wait    func(context.Context, time.Duration)
	version string
	built   string // with and for what

	system string // Clarion's namespace
	every  bool   // Services of all namespaces are meant
	// offline: a dump is read, whose name is that of the flag --cluster.
	offline bool
	output  string // table, wide, json or yaml
	color   bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	a := &app{
		IOStreams: genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
		connect:   dial, now: time.Now, wait: wait,
		version: version.String(), built: goruntime.Version() + " " + goruntime.GOOS + "/" + goruntime.GOARCH,
		color: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
	a.ask = a.forwarded
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// run does what the words of a command line say, and returns the code to exit with.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	var code exit
	switch err := root.ExecuteContext(ctx); {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	default:
		fmt.Fprintln(a.ErrOut, "error: "+err.Error())
		return int(couldNotTell)
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-clarion",
		Short: "What Clarion does in this cluster, and why not more",
		Long: `What Clarion does in this cluster, and why not more.

Nothing is written to the cluster. The exit code is 0 when all is well, 1 when problems were found, and 2 when the
question cannot be answered: what that takes may not be read, or cannot be reached.`,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl clarion"},
		Version:       a.version,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.ErrOut)
	root.SetVersionTemplate("kubectl-clarion {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	a.flags = genericclioptions.NewConfigFlags(true)
	a.flags.AddFlags(root.PersistentFlags())
	root.PersistentFlags().StringVar(&a.system, "clarion-namespace", "clarion-system", "the namespace that Clarion runs in")
	root.PersistentFlags().BoolVar(&a.offline, "offline", false, "answer from the dump that --cluster names, not from a cluster")
	root.AddCommand(a.statusCommand(), a.explainCommand(), a.traceCommand(), a.planCommand(), a.lintCommand(), a.dumpCommand(), a.migrateCommand(), a.dashboardCommand(), a.versionCommand())
	a.completeFlags(root)
	return root
}

// printFlag lets a command be asked for other output than its table.
func (a *app) printFlag(cmd *cobra.Command) {
	formats := []string{"table", "wide", "json", "yaml"}
	cmd.Flags().StringVarP(&a.output, "output", "o", "table", "output format: "+strings.Join(formats, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(formats, a.output) {
			return fmt.Errorf("--output %q: want one of %s", a.output, strings.Join(formats, ", "))
		}
		return run(cmd, args)
	}
}

// allFlag lets a command be asked about the Services of all namespaces.
func (a *app) allFlag(cmd *cobra.Command, usage string) {
	cmd.Flags().BoolVarP(&a.every, "all-namespaces", "A", false, usage)
}

// within says whether Services of a namespace are asked about, where all are unless -n names one.
func (a *app) within(namespace string) bool {
	return a.every || *a.flags.Namespace == "" || *a.flags.Namespace == namespace
}

// print writes an answer, by table unless it was asked for in another format.
func (a *app) print(answer any, table func(w io.Writer, wide bool) error) error {
	switch a.output {
	case "json":
		e := json.NewEncoder(a.Out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(answer)
	case "yaml":
		b, err := yaml.Marshal(answer)
		if err != nil {
			return err
		}
		_, err = a.Out.Write(b)
		return err
	}
	return table(a.Out, a.output == "wide")
}

// Colors of a terminal.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint colors a text on a terminal.
func (a *app) paint(color, text string) string {
	if !a.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// dial reads the cluster that flags and a kubeconfig file point to.
func dial(flags *genericclioptions.ConfigFlags) (*connection, error) {
	namespace, _, err := flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, err
	}
	config, err := flags.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // a dozen requests, all at once
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	return &connection{Reader: c, config: config, namespace: namespace, pods: pods{config}}, err
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(clientgoscheme.AddToScheme(scheme), v1beta1.AddToScheme(scheme))
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// slow is after which time a user is told what is being waited for.
const slow = time.Second

// progress says on the standard error what is being waited for, once that has taken a while.
type progress struct {
	w    io.Writer
	from time.Time
}

// step begins with something that may take long; what it returns is called when that is over.
func (p *progress) step(what string) (done func()) {
	if p.w == nil {
		return func() {}
	}
	t := time.AfterFunc(max(0, slow-time.Since(p.from)), func() { fmt.Fprintln(p.w, what+" …") })
	return func() { t.Stop() }
}

// load reads the cluster.
func (a *app) load(ctx context.Context) (*connection, *cluster, error) {
	conn, err := a.open()
	if err != nil {
		return nil, nil, err
	}
	c, err := a.read(ctx, conn)
	return conn, c, err
}

func (a *app) read(ctx context.Context, from *connection) (*cluster, error) {
	how := reading{namespace: a.system, now: a.now, wait: a.wait, progress: &progress{a.ErrOut, time.Now()}}
	if d := from.dump; d != nil {
		how.namespace, how.now, how.alive = d.System, func() time.Time { return d.Taken }, &d.ControllerAlive
	}
	return load(ctx, from, how)
}
