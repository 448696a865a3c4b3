package v1beta1

import (
	"encoding/json"
	"testing"
)

// What an earlier release wrote of a speaker can be read: one object that cannot be keeps a whole list from being read,
// and with it every program that waits for its cache.
func TestSpeakersOfEarlierReleases(t *testing.T) {
	for _, text := range []string{
		`{"status":{"version":"v0.1","members":["a","b"],"layer2":[{"address":"192.0.2.1","services":["default/web"],"interfaces":["eth0"]}]}}`,
		`{"status":{"layer2":[{}]}}`, // as an API server gives it whose CRD knows no such list any more
	} {
		if err := json.Unmarshal([]byte(text), &Speaker{}); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
