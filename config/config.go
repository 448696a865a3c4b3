// Package config holds the manifests that Clarion is installed with.
package config

import "embed"

// CRDs are the CustomResourceDefinitions, a file each, in the folder crd.
//
//go:embed crd/clarionlb.io_*.yaml
var CRDs embed.FS
