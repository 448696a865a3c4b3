// Command stream sends requests at a steady rate, each over a new connection, until it is interrupted or -for is over, and
// prints what was lost: one line of JSON. HTTP over TCP to port 80, or with -udp datagrams to port 8081 (agnhost netexec).
// With -conns it keeps that many connections, sends a request over each five times a second, and prints how many broke.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"
)

type result struct {
	start, end time.Duration // since the first request
	err        string
}

func main() {
	addr := flag.String("addr", "", "address, without port")
	rate := flag.Int("rate", 100, "requests a second")
	limit := flag.Duration("for", 10*time.Minute, "at most")
	timeout := flag.Duration("timeout", 3*time.Second, "of one request")
	udp := flag.Bool("udp", false, "datagrams instead of HTTP")
	name := flag.String("name", "", "printed with the result")
	conns := flag.Int("conns", 0, "connections to keep")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()

	if *conns > 0 {
		keep(ctx, *name, *addr, *conns, *timeout)
		return
	}
	var mu sync.Mutex
	var all []result
	var wg sync.WaitGroup
	begin := time.Now()
	tick := time.NewTicker(time.Second / time.Duration(*rate))
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			wg.Add(1)
			go func() {
				defer wg.Done()
				r := result{start: time.Since(begin)}
				if *udp {
					r.err = datagram(*addr, *timeout)
				} else {
					r.err = request(*addr, *timeout)
				}
				r.end = time.Since(begin)
				mu.Lock()
				all = append(all, r)
				mu.Unlock()
			}()
		}
	}
	wg.Wait()
	out := map[string]any{"name": *name, "sent": len(all)}
	errs, failed, slow := map[string]int{}, 0, 0
	var worst, first, last time.Duration
	for _, r := range all {
		took := r.end - r.start
		if r.err != "" {
			errs[r.err]++
			failed++
			if first == 0 || r.start < first {
				first = r.start
			}
			last = max(last, r.start)
			continue
		}
		worst = max(worst, took)
		if took > 500*time.Millisecond {
			slow++
		}
	}
	out["lost"], out["slower_than_500ms"], out["slowest_ms"] = failed, slow, worst.Milliseconds()
	if failed > 0 {
		out["errors"], out["from_first_to_last_lost_ms"] = errs, (last - first).Milliseconds()
	}
	json.NewEncoder(os.Stdout).Encode(out)
}

// keep prints how many of n connections broke, and how: each is made again then.
func keep(ctx context.Context, name, addr string, n int, timeout time.Duration) {
	var mu sync.Mutex
	broken, sent := map[string]int{}, 0
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				err := talk(ctx, addr, timeout, func() { mu.Lock(); sent++; mu.Unlock() })
				if err != nil && ctx.Err() == nil {
					mu.Lock()
					broken[kind(err)]++
					mu.Unlock()
				}
			}
		}()
	}
	wg.Wait()
	total := 0
	for _, c := range broken {
		total += c
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"name": name, "connections": n, "requests": sent, "broke": total, "errors": broken})
}

func talk(ctx context.Context, addr string, timeout time.Duration, sent func()) error {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, "80"), timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for ctx.Err() == nil {
		c.SetDeadline(time.Now().Add(timeout))
		if _, err := io.WriteString(c, "GET /hostname HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
			return err
		}
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return err
		}
		sent()
		time.Sleep(200 * time.Millisecond)
	}
	return nil
}

func request(addr string, timeout time.Duration) string {
	c := http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get("http://" + net.JoinHostPort(addr, "80") + "/hostname")
	if err != nil {
		return kind(err)
	}
	defer r.Body.Close()
	if _, err = io.ReadAll(r.Body); err != nil {
		return kind(err)
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Sprint(r.StatusCode)
	}
	return ""
}

func datagram(addr string, timeout time.Duration) string {
	c, err := net.Dial("udp", net.JoinHostPort(addr, "8081"))
	if err != nil {
		return kind(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	if _, err = c.Write([]byte("hostname")); err != nil {
		return kind(err)
	}
	if _, err = c.Read(make([]byte, 512)); err != nil {
		return kind(err)
	}
	return ""
}

// kind says what went wrong, without ports.
func kind(err error) string {
	var n net.Error
	s := err.Error()
	if errors.As(err, &n) && n.Timeout() {
		return "timeout"
	}
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == ':' {
			return s[i+2:]
		}
	}
	return s
}
