package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// record is what is kept on disk of a running process, so that a later process can end it and nothing else.
type record struct {
	Host, Name string
	PID        int
	Start      uint64 // clock ticks between boot and the process's start: with the PID, its identity
	Boot       string
	Command    []string
	Env        []string
}

func (r record) key() string { return r.Host + "." + r.Name }

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// stat returns a process's state letter and start time (proc(5), /proc/pid/stat).
func stat(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The second field is the command's name in brackets and may hold anything; fields count from the last bracket.
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return f[0][0], start, err
}

// alive reports whether this very process still runs, not just one with its PID.
func (r record) alive() bool {
	state, start, err := stat(r.PID)
	return err == nil && start == r.Start && state != 'Z' && state != 'X' && r.Boot == bootID()
}

// signal sends to the whole process group, of which the process is the leader.
func (r record) signal(s syscall.Signal) {
	if r.alive() {
		_ = unix.Kill(-r.PID, s)
	}
}

func (r record) waitGone(timeout time.Duration) error {
	return Eventually(context.Background(), timeout, func() error {
		if r.alive() {
			return fmt.Errorf("process %d (%s on %s) does not end", r.PID, r.Name, r.Host)
		}
		return nil
	})
}

func (l *Lab) recordPath(key string) string { return filepath.Join(l.state, "run", key+".json") }

func (l *Lab) records() ([]record, error) {
	files, err := filepath.Glob(filepath.Join(l.state, "run", "*.json"))
	if err != nil {
		return nil, err
	}
	var out []record
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		var r record
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// Process is a program that the lab started in a host's namespace, in a session of its own.
type Process struct {
	l          *Lab
	host, name string
	command    []string
	env        []string

	mu   sync.Mutex
	rec  record
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// Start runs a program in a host's namespace. What it prints is appended to Log. env is added to this process's own
// environment. name tells the processes of one host apart; a second one of the same name is refused while the first runs.
func (l *Lab) Start(host, name string, command []string, env ...string) (*Process, error) {
	p := &Process{l: l, host: host, name: name, command: command, env: env}
	key := host + "." + name
	l.mu.Lock()
	old := l.processes[key]
	if old != nil && old.Alive() {
		l.mu.Unlock()
		return nil, fmt.Errorf("%s already runs on %s", name, host)
	}
	l.processes[key] = p
	l.mu.Unlock()
	return p, p.start()
}

func (p *Process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.l.In(p.host, cmd.Start); err != nil {
		return fmt.Errorf("start %s on %s: %w", p.name, p.host, err)
	}
	p.rec = record{Host: p.host, Name: p.name, PID: cmd.Process.Pid, Boot: bootID(), Command: p.command, Env: p.env}
	_, p.rec.Start, err = stat(p.rec.PID)
	if err == nil {
		err = p.write()
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("record %s on %s: %w", p.name, p.host, err)
	}
	done := make(chan struct{})
	p.done, p.err = done, nil
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

func (p *Process) write() error {
	b, err := json.Marshal(p.rec)
	if err != nil {
		return err
	}
	return os.WriteFile(p.l.recordPath(p.rec.key()), b, 0o644)
}

// adopt makes a Process of a record that another process wrote.
func (l *Lab) adopt(r record) *Process {
	p := &Process{l: l, host: r.Host, name: r.Name, command: r.Command, env: r.Env, rec: r, done: make(chan struct{})}
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if !r.alive() {
				close(p.done)
				return
			}
		}
	}()
	return p
}

// Process returns the process of that name on a host, nil if none was started.
func (l *Lab) Process(host, name string) *Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.processes[host+"."+name]
}

// Processes are all that were started and not removed with their pod, in the order of hosts and names.
func (l *Lab) Processes() []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return sorted(l.processes)
}

// Host is where the process runs.
func (p *Process) Host() string { return p.host }

// Name tells the process from others of its host.
func (p *Process) Name() string { return p.name }

// Log is the path of the file with all that the process printed.
func (p *Process) Log() string {
	return filepath.Join(p.l.state, "log", p.host+"."+p.name+".log")
}

// PID is the process's identifier; after Restart, the new one's.
func (p *Process) PID() int { return p.record().PID }

func (p *Process) record() record {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

// Alive reports whether the process has not ended; a stopped one (SIGSTOP) is alive.
func (p *Process) Alive() bool { return p.record().alive() }

// Signal sends a signal, SIGSTOP and SIGCONT included, to the process and its children.
func (p *Process) Signal(s syscall.Signal) { p.record().signal(s) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// Wait blocks until the process has ended and says how, nil for exit code 0.
func (p *Process) Wait() error {
	<-p.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Stop asks the process to end with SIGTERM and waits for it; after ten seconds it kills it and returns an error.
func (p *Process) Stop() error {
	p.Signal(unix.SIGTERM)
	select {
	case <-p.Done():
		return nil
	case <-time.After(10 * time.Second):
		p.Kill()
		return fmt.Errorf("%s on %s was killed: it had not ended 10s after SIGTERM", p.name, p.host)
	}
}

// Kill ends the process at once, with SIGKILL, and waits until it is gone.
func (p *Process) Kill() {
	p.Signal(unix.SIGKILL)
	<-p.Done()
}

// Restart starts the program again after it has ended, with the same arguments and environment.
func (p *Process) Restart() error {
	if p.Alive() {
		return fmt.Errorf("%s on %s still runs", p.name, p.host)
	}
	return p.start()
}

// forget removes the record of a process that has ended.
func (p *Process) forget() {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	key := p.record().key()
	delete(p.l.processes, key)
	_ = os.Remove(p.l.recordPath(key))
}

// waitReady calls f until it succeeds, the process ends or time is up; the error carries the end of the log.
func (p *Process) waitReady(ctx context.Context, timeout time.Duration, f func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := p.Done()
	go func() {
		select {
		case <-done:
			cancel(errors.New("it ended"))
		case <-ctx.Done():
		}
	}()
	if err := Eventually(ctx, timeout, f); err != nil {
		return fmt.Errorf("%s on %s: %w\n%s", p.name, p.host, errors.Join(err, context.Cause(ctx)), p.tail(10))
	}
	return nil
}

// tail returns the last lines of the log.
func (p *Process) tail(n int) string {
	b, _ := os.ReadFile(p.Log())
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
