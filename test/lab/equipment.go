package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// nginxConfig is what every nginx of the lab needs, around the http block's contents: no file outside of its folder, and
// no daemon.
const nginxConfig = `daemon off;
pid nginx.pid;
error_log stderr;
worker_processes 1;
events {}
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
%s
}
`

// Nginx returns a command for PodSpec: nginx with the contents of its http block. name tells the lab's nginxes
// apart.
func (l *Lab) Nginx(name, http string) ([]string, error) {
	dir := filepath.Join(l.state, "nginx-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "nginx.conf")
	return []string{"nginx", "-p", dir, "-e", "stderr", "-c", conf}, os.WriteFile(conf, fmt.Appendf(nil, nginxConfig, http), 0o644)
}

// HAProxy runs HAProxy on a host, as the load-balancing equipment that a site has already, and returns when it accepts
// TCP connections on a port. config is all but the section "global".
func (l *Lab) HAProxy(ctx context.Context, host string, port uint16, config string) (*Process, error) {
	conf := filepath.Join(l.state, "haproxy-"+host+".cfg")
	if err := os.WriteFile(conf, []byte("global\n  log stdout format raw daemon\n"+config), 0o644); err != nil {
		return nil, err
	}
	p, err := l.Start(host, "haproxy", []string{"haproxy", "-db", "-f", conf})
	if err != nil {
		return nil, err
	}
	addr := netip.AddrPortFrom(l.Host(host).IPv4, port).String()
	return p, p.waitReady(ctx, 10*time.Second, func() error { return l.connectable(ctx, host, addr) })
}
