package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The speakers' common key: a Secret with a line for each key, the newest first. A speaker sends with the first and
// takes any of them, so that a key can be replaced without a gap.
const (
	membersSecret = "clarion-memberlist"
	membersKeys   = "keys"
	membersRetry  = 5 * time.Second // after a failure
	membersAgain  = time.Minute     // somebody may have deleted it: speakers that start later would wait for ever
)

// keepMembersKey makes the Secret whenever there is none, until ctx ends. One that is there is left as it is.
func keepMembersKey(ctx context.Context, c client.Client, namespace string, log *slog.Logger) {
	for {
		wait := membersAgain
		err := createMembersKey(ctx, c, namespace)
		switch {
		case err == nil:
			log.Info("key for the speakers made", "secret", namespace+"/"+membersSecret)
		case !apierrors.IsAlreadyExists(err):
			log.Warn("cannot make the key for the speakers", "error", err)
			wait = membersRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func createMembersKey(ctx context.Context, c client.Client, namespace string) error {
	raw := make([]byte, 32) // AES-256
	if _, err := rand.Read(raw); err != nil {
		return fmt.Errorf("random key: %w", err)
	}
	return c.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: membersSecret},
		Data:       map[string][]byte{membersKeys: []byte(base64.StdEncoding.EncodeToString(raw) + "\n")},
	})
}
