# shellcheck shell=bash
# What `up`, `down` and the build of the node image share: places, progress, errors, keys.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
KIND_DIR=$ROOT/tests/e2e/kind
# All that is built or downloaded, and the cluster's disk.
WORK=$ROOT/target/cluster
# Two checkouts on one machine do not meet: every name outside of WORK carries this.
ID=$(printf '%s' "$ROOT" | sha256sum | cut -c1-6)
# State that must not outlive the processes: gone after a reboot, as they are.
RUN=/run/palisade-cluster-$ID
CLUSTER=palisade
KUBERNETES_VERSION=v1.37.2
# What kind v0.33.0 was released with.
KIND_IMAGE=kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5
PAUSE_VERSION=3.10.2
ETCD_VERSION=3.7.0-0
# The cluster's DNS, as kubeadm of this version asks for it: node-image/dns/go.mod has the same version.
DNS_IMAGE=registry.k8s.io/coredns/coredns:v1.14.6
AGNHOST_IMAGE=registry.k8s.io/e2e-test-images/agnhost:2.66.1

# Prints a line with the time since the command was typed.
say() {
	printf '[%2d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*" >&2
}

# Ends with the cause and what to do.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# begin WHAT HINT COMMAND...: starts the command with its output in a log, and sets JOB to its process; `await` waits
# for it. It has a process group of its own, so that `stop_jobs` ends all that it started.
begin() {
	local what=$1 hint=$2 log
	shift 2
	mkdir -p "$WORK/log"
	log=$WORK/log/$(printf '%s' "${what%% (*}" | tr -cs 'A-Za-z0-9.' '-').log
	say "$what"
	rm -f "$log.ended"
	set -m
	# Not in a condition: `set -e` must hold inside. How it ended is written down: it may have ended long before somebody waits for it, and its number may
	# be another process's by then.
	(
		trap 'echo $? >"$log.ended"' EXIT
		"$@"
	) >"$log" 2>&1 </dev/null &
	JOB=$!
	set +m
	JOBS[$JOB]="${what%% (*}|$SECONDS|$log|$hint"
}

# await PROCESS: says that the job goes on and when it is done. On failure: the log's end, its place, and the hint.
await() {
	local pid=$1 what begun log hint turns=0 seconds
	IFS='|' read -r what begun log hint <<<"${JOBS[$pid]}"
	while [ ! -s "$log.ended" ] && kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		turns=$((turns + 1))
		[ $((turns % 300)) -ne 0 ] || say "$what: at it since $((SECONDS - begun)) s"
	done
	unset "JOBS[$pid]"
	seconds=$((SECONDS - begun))
	if [ "$(cat "$log.ended" 2>/dev/null)" != 0 ]; then
		tail -n 15 "$log" | sed 's/^/    /' >&2
		die "$what: failed after $seconds s. $hint (whole log: $log)"
	fi
	[ $seconds -lt 2 ] || say "$what: done in $seconds s"
}

# step WHAT HINT COMMAND...: begin and await.
step() {
	begin "$@"
	await "$JOB"
}

declare -A JOBS=()

stop_jobs() {
	local pid log
	for pid in "${!JOBS[@]}"; do
		IFS='|' read -r _ _ log _ <<<"${JOBS[$pid]}"
		[ -s "$log.ended" ] || kill -TERM -- "-$pid" 2>/dev/null || true
	done
}

# content_key PATH...: a short hash over names, modes and contents below the paths, and over standard input.
content_key() {
	{
		cat
		local path
		for path in "$@"; do
			(cd "$(dirname "$path")" && find "$(basename "$path")" -type f -printf '%m %p\n' -exec sha256sum {} + | LC_ALL=C sort)
		done
	} | sha256sum | cut -c1-16
}

# forget_other PREFIX KEEP: removes what earlier keys left in WORK.
forget_other() {
	local path
	for path in "$WORK/$1"*; do
		[ "$path" = "$WORK/$2" ] || rm -rf --one-file-system "$path"
	done
}

# make_image ARCHIVE DIRECTORY CONFIG NAME...: an image archive of one layer, as `docker save` writes it, without an
# engine; the same bytes for the same content. CONFIG is the image's run configuration in JSON.
make_image() {
	local archive=$1 directory=$2 config=$3 parts layer digest names
	shift 3
	parts=$(mktemp -d "$WORK/image.XXXXXX")
	tar -C "$directory" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$parts/layer" .
	layer=$(sha256sum "$parts/layer" | cut -d' ' -f1)
	mv "$parts/layer" "$parts/$layer.tar"
	printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
		"$(go_architecture)" "$config" "$layer" >"$parts/config"
	digest=$(sha256sum "$parts/config" | cut -d' ' -f1)
	mv "$parts/config" "$parts/$digest.json"
	names=$(printf '"%s",' "$@")
	printf '[{"Config":"%s.json","RepoTags":[%s],"Layers":["%s.tar"]}]' "$digest" "${names%,}" "$layer" >"$parts/manifest.json"
	tar -C "$parts" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$archive.part" .
	rm -rf "$parts"
	mv "$archive.part" "$archive"
}

go_architecture() {
	case $(uname -m) in
	x86_64) echo amd64 ;;
	aarch64) echo arm64 ;;
	*) die "no Kubernetes for a machine of type $(uname -m): use x86_64 or aarch64" ;;
	esac
}

# need_program PROGRAM PACKAGE: installs Debian's package where the program is missing and that is possible.
need_program() {
	command -v "$1" >/dev/null && return
	if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
		step "Installing Debian's package $2" "Install it by hand, then try again." apt_install "$2"
	else
		die "$1 is missing: install the package $2 of your system (as root), then try again"
	fi
}

apt_install() {
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y --no-install-recommends "$@" || {
		apt-get update
		apt-get install -y --no-install-recommends "$@"
	}
}

# One `up` or `down` at a time in a checkout.
take_lock() {
	exec 9>"$WORK/lock"
	flock -n 9 || die "another make cluster or make cluster-down is at work in this checkout: wait for it"
}
