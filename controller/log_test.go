package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// What client-go logs as an error when an event's namespace is going, in its very words, is not logged; others are.
func TestEventsOfGoingNamespaces(t *testing.T) {
	var out bytes.Buffer
	log := logr.FromSlogHandler(quiet{slog.NewTextHandler(&out, nil)}).WithValues("k", "v").WithName("events")
	going := apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "web.1", errors.New("unable to create new content in namespace a because it is being terminated"))
	going.ErrStatus.Details.Causes = append(going.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
	log.Error(going, "Server rejected event (will not retry!)", "event", "x")
	if out.Len() > 0 {
		t.Errorf("logged: %s", out.String())
	}
	log.Error(apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "web.1", errors.New("no right")), "Server rejected event (will not retry!)", "event", "x")
	if !strings.Contains(out.String(), "no right") {
		t.Errorf("an event that may not be written is not logged: %q", out.String())
	}
}
