package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// file is one of an archive: its text, or else the file that it is read from.
type file struct {
	name, from string
	data       []byte
	mode       int64
}

func (f file) read() ([]byte, error) {
	if f.data != nil {
		return f.data, nil
	}
	return os.ReadFile(f.from)
}

// writeArchive writes files as .zip, or else as .tgz or .tar.gz, all with the same time and of root.
func writeArchive(path string, at time.Time, files []file) error {
	var b bytes.Buffer
	if strings.HasSuffix(path, ".zip") {
		z := zip.NewWriter(&b)
		for _, f := range files {
			data, err := f.read()
			if err != nil {
				return err
			}
			w, err := z.CreateHeader(&zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: at})
			if err != nil {
				return err
			}
			if _, err := w.Write(data); err != nil {
				return err
			}
		}
		if err := z.Close(); err != nil {
			return err
		}
		return os.WriteFile(path, b.Bytes(), 0o644)
	}
	t, err := tarOf(at, files)
	if err != nil {
		return err
	}
	z, err := gzipOf(t)
	if err != nil {
		return err
	}
	return os.WriteFile(path, z, 0o644)
}

func tarOf(at time.Time, files []file) ([]byte, error) {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for _, f := range files {
		data, err := f.read()
		if err != nil {
			return nil, err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(data)), ModTime: at, Format: tar.FormatUSTAR}
		if err := t.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := t.Write(data); err != nil {
			return nil, err
		}
	}
	err := t.Close()
	return b.Bytes(), err
}

func gzipOf(data []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(z, bytes.NewReader(data)); err != nil {
		return nil, err
	}
	err = z.Close()
	return b.Bytes(), err
}

// Media types of the OCI image specification, 1.1.
const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// descriptor names a blob of an image.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *ociPlatform      `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type ociPlatform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// writeImage writes the image for several platforms as one OCI archive, for ctr, podman, skopeo, crane and docker to
// load or push, and returns its digest. It is the image that the Dockerfile makes: one layer, from scratch.
func (r *release) writeImage(path string, layers map[platform][]file) (digest string, err error) {
	files := []file{{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`), mode: 0o644}}
	seen := map[string]bool{}
	blob := func(mediaType string, data []byte) descriptor {
		d := descriptor{MediaType: mediaType, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(data)), Size: len(data)}
		if name := "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:"); !seen[name] {
			seen[name] = true
			files = append(files, file{name: name, data: data, mode: 0o644})
		}
		return d
	}
	encode := func(v any) []byte {
		b, e := json.Marshal(v)
		if e != nil {
			err = e
		}
		return b
	}
	labels := map[string]string{
		"org.opencontainers.image.title": "clarion", "org.opencontainers.image.version": r.version, "org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.source": repository, "org.opencontainers.image.revision": r.commit,
		"org.opencontainers.image.created": r.time.Format(time.RFC3339),
	}
	var manifests []descriptor
	for _, p := range r.images {
		layer, err := tarOf(r.time, layers[p])
		if err != nil {
			return "", err
		}
		zipped, err := gzipOf(layer)
		if err != nil {
			return "", err
		}
		config := encode(map[string]any{
			"created": r.time.Format(time.RFC3339), "architecture": p.arch, "os": p.os,
			"config":  map[string]any{"User": "65532:65532", "Labels": labels},
			"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
			"history": []any{map[string]string{"created": r.time.Format(time.RFC3339), "created_by": "make release"}},
		})
		manifest := encode(map[string]any{
			"schemaVersion": 2, "mediaType": manifestType, "config": blob(configType, config),
			"layers": []descriptor{blob(layerType, zipped)}, "annotations": labels,
		})
		d := blob(manifestType, manifest)
		d.Platform = &ociPlatform{p.arch, p.os}
		manifests = append(manifests, d)
	}
	image := blob(indexType, encode(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": manifests, "annotations": labels}))
	digest = image.Digest
	// The names by which containerd and others know what they import.
	image.Annotations = map[string]string{"io.containerd.image.name": imageName + ":" + r.version, "org.opencontainers.image.ref.name": r.version}
	files = append(files, file{name: "index.json", data: encode(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []descriptor{image}}), mode: 0o644})
	if err != nil {
		return "", err
	}
	archive, err := tarOf(r.time, files)
	if err != nil {
		return "", err
	}
	return digest, os.WriteFile(path, archive, 0o644)
}
