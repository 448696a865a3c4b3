package main

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/clarionlb/clarion/internal/config"
)

// What is said beforehand of an edit of a BGPPeer is what it does: it ends sessions if and only if their identity changes.
func TestResets(t *testing.T) {
	r := &reconciler{}
	base := config.Peer{Name: "tor1", LocalASN: 64500, PeerASN: 64512, Address: netip.MustParseAddr("192.0.2.1"), Port: 179}
	fields := reflect.TypeFor[config.Peer]()
	resets := 0
	for i := range fields.NumField() {
		f := fields.Field(i)
		if !f.IsExported() || f.Name == "Name" || f.Name == "SecretName" || f.Name == "SecretNamespace" { // Secrets are looked up
			continue
		}
		next := base
		switch v := reflect.ValueOf(&next).Elem().Field(i); v.Interface().(type) {
		case bool:
			v.SetBool(true)
		case string:
			v.SetString(map[string]string{"Dynamic": "internal", "Gateway": "IPv6", "LinkBandwidth": "both"}[f.Name])
			if v.String() == "" {
				v.SetString("other")
			}
		case uint16, uint32:
			v.SetUint(7)
		case time.Duration:
			v.SetInt(int64(time.Minute))
		case *time.Duration:
			v.Set(reflect.ValueOf(new(time.Minute)))
		case netip.Addr:
			v.Set(reflect.ValueOf(netip.MustParseAddr("192.0.2.9")))
		case time.Time:
			v.Set(reflect.ValueOf(time.Unix(1, 0)))
		case *config.BFDProfile:
			v.Set(reflect.ValueOf(&config.BFDProfile{Multiplier: 3}))
		case config.Selectors:
			continue // which nodes have a session
		default:
			t.Fatalf("%s: what is a %s?", f.Name, f.Type)
		}
		was, is := r.peer(&base, base.Password), r.peer(&next, next.Password)
		if want := was.Identity != is.Identity; base.Resets(&next) != want {
			t.Errorf("%s: said to reset: %t, resets: %t", f.Name, base.Resets(&next), want)
		} else if want {
			resets++
		}
	}
	if resets < 12 {
		t.Errorf("only %d fields reset sessions", resets)
	}
}
