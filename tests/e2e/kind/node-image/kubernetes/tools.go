//go:build tools

// Names the commands that are built from this module besides main.go, so that go.mod keeps what they need.
package main

import (
	_ "helm.sh/helm/v4/cmd/helm"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/test/images/agnhost"
	_ "sigs.k8s.io/kind"
)
