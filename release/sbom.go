package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// writeSBOMs writes what the programs are made of as SPDX 2.3: a document for the image and one for the plug-in, from
// what the linker recorded in the programs themselves.
func (r *release) writeSBOMs(work string) error {
	image, plugin := r.images[0], r.plugins[0]
	for _, d := range []struct {
		name     string
		programs []string
	}{
		{"clarion-image", []string{filepath.Join(work, "image", image.os+"_"+image.arch, "controller"), filepath.Join(work, "image", image.os+"_"+image.arch, "speaker")}},
		{"kubectl-clarion", []string{filepath.Join(work, "plugin", plugin.os+"_"+plugin.arch, "kubectl-clarion")}},
	} {
		text, err := r.sbom(d.name, d.programs)
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.path(d.name+".spdx.json"), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

type spdxPackage struct {
	SPDXID           string         `json:"SPDXID"`
	Name             string         `json:"name"`
	Version          string         `json:"versionInfo"`
	DownloadLocation string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	LicenseConcluded string         `json:"licenseConcluded"`
	LicenseDeclared  string         `json:"licenseDeclared"`
	Copyright        string         `json:"copyrightText"`
	Checksums        []spdxChecksum `json:"checksums,omitempty"`
	Refs             []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

func (r *release) sbom(name string, programs []string) ([]byte, error) {
	const root = "SPDXRef-release"
	pkg := func(id, name, version string) spdxPackage {
		return spdxPackage{SPDXID: id, Name: name, Version: version, DownloadLocation: "NOASSERTION",
			LicenseConcluded: "NOASSERTION", LicenseDeclared: "NOASSERTION", Copyright: "NOASSERTION"}
	}
	top := pkg(root, name, r.version)
	top.LicenseDeclared, top.DownloadLocation = "Apache-2.0", "git+"+repository+"@"+r.commit
	packages := []spdxPackage{top}
	relations := []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", root}}
	modules := map[string]*debug.Module{}
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, err
		}
		modules["stdlib"] = &debug.Module{Path: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			modules[m.Path] = m
		}
	}
	paths := make([]string, 0, len(modules))
	for path := range modules {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for i, path := range paths {
		m := modules[path]
		p := pkg(fmt.Sprintf("SPDXRef-module-%d", i+1), path, m.Version)
		p.Refs = []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + strings.ToLower(path) + "@" + m.Version}}
		// Go's h1 is the base64 of a SHA-256 over the list of the module's files and their hashes.
		if b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(b) == sha256.Size {
			p.Checksums = []spdxChecksum{{"SHA256", fmt.Sprintf("%x", b)}}
		}
		packages = append(packages, p)
		relations = append(relations, spdxRelationship{root, "DEPENDS_ON", p.SPDXID})
	}
	return json.MarshalIndent(map[string]any{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": name + "-" + r.version,
		"documentNamespace": repository + "/releases/download/" + r.version + "/" + name + ".spdx.json#" + r.commit,
		"creationInfo":      map[string]any{"created": r.time.Format(time.RFC3339), "creators": []string{"Organization: Clarion", "Tool: clarion-release"}},
		"packages":          packages, "relationships": relations,
	}, "", " ")
}

// writeProvenance writes how the files were made, as an in-toto statement with a SLSA v1 predicate. It is not signed:
// that takes a service that vouches for the builder, which the workflow that publishes adds.
func (r *release) writeProvenance(sums []sum) error {
	var subjects []any
	for _, s := range sums {
		subjects = append(subjects, map[string]any{"name": s.name, "digest": map[string]string{"sha256": fmt.Sprintf("%x", s.sum)}})
	}
	text, err := json.MarshalIndent(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "subject": subjects, "predicateType": "https://slsa.dev/provenance/v1",
		"predicate": map[string]any{
			"buildDefinition": map[string]any{
				"buildType":          repository + "/blob/main/release/main.go",
				"externalParameters": map[string]any{"command": "make release VERSION=" + r.version},
				"internalParameters": map[string]any{"go": r.goVer, "ldflags": r.ldflags()},
				"resolvedDependencies": []any{map[string]any{
					"uri": "git+" + repository, "digest": map[string]string{"gitCommit": r.commit}}},
			},
			"runDetails": map[string]any{"builder": map[string]string{"id": repository + "/blob/main/Makefile"}},
		},
	}, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(r.path("provenance.intoto.json"), text, 0o644)
}
