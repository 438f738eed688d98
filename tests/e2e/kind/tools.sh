# shellcheck shell=bash
# Kubernetes, kind, helm and agnhost from Go modules, where the machine does not have what is needed.

GO_VERSION=1.26.8
MODULE=$KIND_DIR/node-image/kubernetes
DNS_MODULE=$KIND_DIR/node-image/dns

# Sets GO to a usable go command: the machine's (from 1.21 on it fetches the version that go.mod asks for), or
# the toolchain that the Go project publishes as a module.
find_go() {
	local candidate minor
	export GOMODCACHE=$WORK/cache/modules GOCACHE=$WORK/cache/build GOFLAGS=-modcacherw GOTOOLCHAIN=auto
	for candidate in "$(command -v go || true)" /usr/local/go/bin/go; do
		[ -x "$candidate" ] || continue
		minor=$("$candidate" version | sed -n 's/.* go1\.\([0-9]*\).*/\1/p')
		if [ "${minor:-0}" -ge 21 ]; then
			GO=$candidate
			return
		fi
	done
	GO=$WORK/cache/go-$GO_VERSION/bin/go
	[ -x "$GO" ] && return
	need_program curl curl
	need_program unzip unzip
	step "Downloading Go $GO_VERSION" "Is the Go module proxy reachable? Or install Go 1.21 or newer." download_go
}

download_go() {
	local name sum
	name=v0.0.1-go$GO_VERSION.linux-$(go_architecture)
	# Sums of the files; what is in them is also listed by sum.golang.org.
	case $(go_architecture) in
	amd64) sum=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7 ;;
	arm64) sum=02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99 ;;
	esac
	mkdir -p "$WORK/cache"
	curl -fsSL -o "$WORK/cache/go.zip" "https://proxy.golang.org/golang.org/toolchain/@v/$name.zip"
	echo "$sum  $WORK/cache/go.zip" | sha256sum -c -
	rm -rf "$WORK/cache/go.part"
	unzip -q "$WORK/cache/go.zip" -d "$WORK/cache/go.part"
	chmod -R u+x "$WORK/cache/go.part/golang.org/toolchain@$name/bin" "$WORK/cache/go.part/golang.org/toolchain@$name/pkg/tool"
	mv "$WORK/cache/go.part/golang.org/toolchain@$name" "$WORK/cache/go-$GO_VERSION"
	rm -rf "$WORK/cache/go.part" "$WORK/cache/go.zip"
}

# Sets TOOLS to the directory that holds what is built from the module; builds NAME... where missing.
# Known names: kubernetes, agnhost, pause, kubectl, kind, kube-proxy, helm.
build_tools() {
	local key name
	key=$(echo "$KUBERNETES_VERSION $(go_architecture)" | content_key "$MODULE")
	TOOLS=$WORK/tools-$key
	forget_other tools- "tools-$key"
	mkdir -p "$TOOLS"
	for name in "$@"; do
		[ -x "$TOOLS/$name" ] && continue
		find_go
		case $name in
		kubernetes) step "Building Kubernetes $KUBERNETES_VERSION and etcd (5 minutes on two cores, once)" "$(go_hint)" go_build kubernetes . ;;
		agnhost) step "Building agnhost" "$(go_hint)" go_build agnhost k8s.io/kubernetes/test/images/agnhost ;;
		pause) step "Building pause" "$(go_hint)" go_build pause ./pause ;;
		# By itself it starts in half the time, and the tests start it thousands of times.
		kubectl) step "Building kubectl" "$(go_hint)" go_build kubectl k8s.io/kubernetes/cmd/kubectl ;;
		kind) step "Building kind" "$(go_hint)" go_build kind sigs.k8s.io/kind ;;
		kube-proxy) step "Building kube-proxy" "$(go_hint)" go_build kube-proxy k8s.io/kubernetes/cmd/kube-proxy ;;
		helm) step "Building helm (a minute on two cores, once)" "$(go_hint)" go_build helm helm.sh/helm/v4/cmd/helm ;;
		esac
	done
}

go_hint() {
	echo "Is the Go module proxy reachable, and is there space for 6 GB in $WORK?"
}

# go_build NAME PACKAGE [MODULE]
go_build() {
	local flags="-s -w" package
	for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		flags+=" -X $package.gitVersion=$KUBERNETES_VERSION -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES_VERSION")"
		flags+=" -X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
	done
	cd "${3:-$MODULE}"
	# Nobody debugs them: without what a debugger wants they are compiled sooner.
	CGO_ENABLED=0 nice -n 10 "$GO" build -trimpath -buildvcs=false -gcflags=all=-dwarf=false -ldflags "$flags" -o "$TOOLS/$1.part" "$2"
	mv "$TOOLS/$1.part" "$TOOLS/$1"
}

# tool NAME: puts the machine's own command, or else ours, at WORK/bin/NAME.
tool() {
	local own
	mkdir -p "$WORK/bin"
	own=$(command -v "$1" || true)
	if [ -n "$own" ] && suits "$1" "$own"; then
		ln -sfn "$own" "$WORK/bin/$1"
	else
		build_tools "$1"
		ln -sfn "$TOOLS/$1" "$WORK/bin/$1"
	fi
}

# suits NAME PATH: whether a command that the machine has is new enough.
suits() {
	case $1 in
	kind) [ "$("$2" version -q 2>/dev/null | cut -d. -f2)" -ge 33 ] 2>/dev/null ;;
	helm) [[ $("$2" version --short 2>/dev/null) =~ ^v(3\.1[4-9]|3\.2|4\.) ]] ;;
	kubectl) [ "$("$2" version --client 2>/dev/null | sed -n 's/^Client Version: v1\.\([0-9]*\).*/\1/p')" -ge 30 ] 2>/dev/null ;;
	esac
}
