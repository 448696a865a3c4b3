package metallb

import "testing"

func TestPattern(t *testing.T) {
	for _, tt := range []struct{ expression, want string }{
		{"^docker.*", "docker*"}, {"^docker", "docker*"}, {"^lo$", "lo"}, {"lo", "*lo*"}, {"veth.*$", "*veth*"}, {`^eth0\.10$`, "eth0.10"},
		{"^kube-ipvs.*", "kube-ipvs*"}, {"^cali[0-9]+", ""}, {"^(a|b)$", ""}, {"^eth0.10$", ""}, {"", ""}, {".*", ""},
	} {
		if got, ok := Pattern(tt.expression); got != tt.want || ok != (tt.want != "") {
			t.Errorf("%q: %q, %t; want %q", tt.expression, got, ok, tt.want)
		}
	}
}
