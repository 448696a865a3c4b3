SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
IMAGE    ?= ghcr.io/clarionlb/clarion:$(VERSION)
FUZZTIME ?= 30s
SEED     ?= 1
FOR      ?= 10m

TOOL := go tool -modfile=internal/tools/go.mod
LAB  := go run ./test/lab/cmd/lab

##@ Everyday

.PHONY: help
help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build controller, speaker and kubectl-clarion into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o bin/ ./controller ./speaker ./kubectl-clarion
	cp kubectl-clarion/kubectl_complete-clarion bin/

.PHONY: generate
generate: ## write deepcopy functions, CRDs and docs/api.md anew after a change in api/
	$(TOOL) controller-gen object paths=./api/...
	$(TOOL) controller-gen crd paths=./api/... output:crd:dir=config/crd
	go run ./docs/gen > docs/api.md.new && mv docs/api.md.new docs/api.md

.PHONY: clean
clean: ## remove what was built here
	rm -rf bin dist

##@ Test

.PHONY: test
test: deps lint generated unit crd e2e ways ## everything; what must pass before a commit

.PHONY: deps
deps: ## install the Debian packages that tests and the lab need (as root; says what is missing otherwise)
	@$(LAB) deps

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted, run gofmt -w:"; echo "$$files"; exit 1; fi
	go vet ./...
	$(TOOL) staticcheck ./...

.PHONY: generated
generated: ## check that generated files are up to date
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; \
	$(TOOL) controller-gen object paths=./api/v1beta1 output:object:dir="$$new"; \
	$(TOOL) controller-gen crd paths=./api/... output:crd:dir="$$new/crd"; \
	diff -u api/v1beta1/zz_generated.deepcopy.go "$$new/zz_generated.deepcopy.go" && \
	diff -ru -x kustomization.yaml config/crd "$$new/crd" || { echo "generated files are out of date: run make generate"; exit 1; }

.PHONY: unit
unit: ## unit tests with the race detector; those of the network stack need root and make their own namespaces
	go test -race -timeout 10m $$(go list ./... | grep -v -e /test/crd -e /test/e2e)

.PHONY: crd
crd: ## every rule of the CRDs and every manifest, against a real kube-apiserver
	go test -count=1 -timeout 20m ./test/crd

.PHONY: e2e
e2e: ## end to end: a real Kubernetes in network namespaces, with routers and clients
	go test -count=1 -timeout 30m -p 1 ./test/e2e ./test/e2e/handover

.PHONY: ways
ways: ## every way to reach a Service, with CoreDNS, nginx and HAProxy, in both modes of kube-proxy
	go test -count=1 -timeout 30m ./test/e2e/ways

.PHONY: kubelets
kubelets: ## Clarion on real kubelets (as root): manifests and chart, and what operators do under load; a quarter of an hour
	test/kubelets/kubelets deps build images up kustomize web plugin ops=idle,rollout,delete,crash,freeze,controller,badimage,drain,taint,kubelet,containerd,delete-node,power,reinstall un-kustomize helm ops=upgrade un-helm

.PHONY: kubelets-quick
kubelets-quick: ## the same in three minutes, once Kubernetes is built: manifests, a Service that answers, speakers updated and killed
	test/kubelets/kubelets deps build images up kustomize web plugin ops=rollout,crash

.PHONY: conformance
conformance: ## Kubernetes' own LoadBalancer specs by layer 2 and BGP, with iptables and nftables; an hour and a half
	FAMILIES=4 MODE=iptables test/kubelets/kubelets deps specs images up kustomize dns long l2 bgp
	FAMILIES=4 MODE=nftables test/kubelets/kubelets up kustomize dns long l2 bgp

.PHONY: chaos
chaos: deps ## faults and edits at random (SEED) in the lab, FOR so long, under probes and judges; HISTORY=FILE plays one again
	go run ./test/chaos -seed $(SEED) -for $(FOR) $(if $(HISTORY),-history $(HISTORY))

.PHONY: bench
bench: deps ## figures of allocation, in the lab; and Go benchmarks
	go test -count=1 -timeout 30m ./controller -run TestFigures -figures -v
	go test -run='^$$' -bench=. -benchmem $$(go list ./... | grep -v /test/)

.PHONY: bench-l2
bench-l2: deps ## figures of layer 2, in the lab: failover, takeover, storms
	go run ./test/bench l2

.PHONY: bench-scale
bench-scale: deps ## what events, memory and many Services cost; a thousand nodes are only told of
	go run ./test/bench scale

.PHONY: bench-bgp
bench-bgp: deps ## figures of BGP and BFD, in the lab and against FRR
	go run ./test/bench bgp
	go test -run='^$$' -bench=. -benchtime=1x -timeout 30m ./test/interop

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME (30s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do \
	  sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file" | while read -r name; do \
	    echo "$$(dirname "$$file") $$name"; \
	    go test -run='^$$' -fuzz="^$$name\$$" -fuzztime=$(FUZZTIME) "$$(dirname "$$file")"; \
	  done; \
	done

##@ Lab

.PHONY: lab
lab: deps ## bring up a Kubernetes cluster with routers and clients, run Clarion in it, and show it round (as root)
	@$(LAB) up

.PHONY: lab-status
lab-status: ## show what runs in the lab
	@$(LAB) status

.PHONY: lab-down
lab-down: ## take the lab down
	@$(LAB) down

##@ Documents

.PHONY: docs
docs: ## the documents as a web site, into dist/site; a link that leads nowhere is an error
	go run ./docs/site -o dist/site

.PHONY: screenshots
screenshots: deps ## pictures of the page of kubectl clarion dashboard, by Chromium, into docs/images
	go test -count=1 ./kubectl-clarion -run TestScreenshots -screenshots "$(CURDIR)/docs/images"

##@ Release

.PHONY: image
image: ## build the container image IMAGE
	docker build -t $(IMAGE) .

.PHONY: release
release: ## everything for a release page into dist/, from the commit: make release VERSION=v1.2.3
	go run ./release -version $(VERSION)
