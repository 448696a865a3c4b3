package announce

import "testing"

// Weights are steps, follow the number of endpoints, and do not flap with an endpoint that comes and goes.
func TestWeight(t *testing.T) {
	sent := float32(0)
	for i, tt := range []struct{ endpoints, want float32 }{
		{0, 0}, {1, 1}, {2, 2}, {3, 3}, {4, 3}, {3, 3}, {6, 6}, {5, 6}, {6, 6}, {4, 4}, {5, 4}, {4, 4}, {8, 8}, {10, 8}, {100, 96}, {0, 0}, {5, 6}, {1, 1},
	} {
		sent = Weight(tt.endpoints*bandwidthUnit, sent)
		if sent != tt.want*bandwidthUnit {
			t.Errorf("step %d: %v endpoints weigh %v, want %v", i, tt.endpoints, sent/bandwidthUnit, tt.want)
		}
	}
}
