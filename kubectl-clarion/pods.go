package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/utils/ptr"
)

// largestText is what is read of a pod's log or metrics at most, in bytes.
const largestText = 64 << 20

// pods reads what pods say through the API server.
type pods struct{ config *rest.Config }

func (p pods) log(ctx context.Context, pod *corev1.Pod, container string, previous bool) ([]byte, error) {
	c, err := kubernetes.NewForConfig(p.config)
	if err != nil {
		return nil, err
	}
	r, err := c.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
		Container: container, Previous: previous, Timestamps: true,
		SinceSeconds: ptr.To(int64(dumpedHour / time.Second)), TailLines: ptr.To(int64(dumpedLines)),
	}).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return io.ReadAll(io.LimitReader(r, largestText))
}

// metrics asks a pod by port-forward, since by default it answers on its loopback alone.
func (p pods) metrics(ctx context.Context, pod *corev1.Pod, port uint16) ([]byte, error) {
	c, err := kubernetes.NewForConfig(p.config)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(p.config)
	if err != nil {
		return nil, err
	}
	url := c.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, failed := make(chan struct{}), make(chan error, 1)
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url),
		[]string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, ctx.Done(), ready, io.Discard, io.Discard)
	if err != nil {
		return nil, err
	}
	go func() { failed <- f.ForwardPorts() }()
	select {
	case err := <-failed:
		return nil, fmt.Errorf("port-forward: %w", err)
	case <-ctx.Done():
		return nil, fmt.Errorf("port-forward: %w", ctx.Err())
	case <-ready:
	}
	local, err := f.GetPorts()
	if err != nil {
		return nil, err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/metrics", local[0].Local), nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(q)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the metrics answer %s", resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, largestText))
}
