# shellcheck shell=bash
# The container engine for kind's nodes: the machine's Docker where it runs, else one of ours.
#
# Ours runs in a network namespace and a mount namespace of its own, on the root directory that the nodes are made
# of. So the machine needs no package for it, its firewall, addresses and mounts stay as they are, and all of it
# ends with the processes. A veth joins the two: the API server is published on its far end, which is an address
# that the machine reaches directly.

NETNS=palisade-$ID
LINK=palisade-$ID
# A /30 of the link-local range for each checkout.
OCTET=$((0x$(cut -c1-2 <<<"$ID")))
MACHINE_ADDRESS=169.254.$((OCTET % 250 + 2)).1
ENGINE_ADDRESS=169.254.$((OCTET % 250 + 2)).2
SOCKET=unix://$RUN/docker.sock
DISK=$WORK/engine

# Whether the machine's own Docker answers.
machine_has_docker() {
	command -v docker >/dev/null && [ -z "${PALISADE_PRIVATE_ENGINE:-}" ] && timeout 10 docker info >/dev/null 2>&1
}

# engine_process: the pid of our running dockerd; fails when it does not run.
engine_process() {
	local pid
	pid=$(cat "$RUN/dockerd.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] && echo "$pid"
}

# start_engine ROOT_DIRECTORY
start_engine() {
	local root=$1 attempt
	mkdir -p "$RUN"
	chmod 700 "$RUN"
	save_sysctls
	# Nodes with systemd, containerd and kubelet need more than the usual 128.
	raise fs/inotify/max_user_instances 1024

	ip netns add "$NETNS"
	ip link add "$LINK" type veth peer name machine netns "$NETNS"
	ip addr add "$MACHINE_ADDRESS/30" dev "$LINK"
	ip link set "$LINK" up
	ip -n "$NETNS" addr add "$ENGINE_ADDRESS/30" dev machine
	ip -n "$NETNS" link set machine up
	ip -n "$NETNS" link set lo up

	mkdir -p "$DISK"
	setsid nsenter --net="/run/netns/$NETNS" unshare --mount --propagation private \
		"$KIND_DIR/engine-inside" "$root" "$DISK" "$RUN" "$KIND_DIR/runc-for-nodes" \
		--host "$SOCKET" --pidfile "$RUN/dockerd.pid" --exec-root "$RUN/exec" --data-root /var/lib/docker \
		--storage-driver overlay2 --default-cgroupns-mode private --exec-opt native.cgroupdriver=cgroupfs \
		--cgroup-parent "/palisade-$ID" --log-level warn \
		--add-runtime nodes=/usr/local/sbin/runc-for-nodes --default-runtime nodes \
		>"$WORK/log/dockerd.log" 2>&1 </dev/null 9>&- &
	for attempt in $(seq 200); do
		if engine_process >/dev/null && "$WORK/bin/docker" info >/dev/null 2>&1; then
			return
		fi
		sleep 0.3
	done
	tail -n 15 "$WORK/log/dockerd.log"
	echo "dockerd did not answer after $attempt attempts"
	return 1
}

# Makes WORK/bin/docker speak to our engine from inside its namespaces.
link_private_docker() {
	mkdir -p "$WORK/bin"
	rm -f "$WORK/bin/docker"
	cat >"$WORK/bin/docker" <<-END
		#!/bin/sh
		# The client of the cluster's own Docker engine.
		pid=\$(cat $RUN/dockerd.pid) || { echo "docker: the cluster's engine does not run: make cluster" >&2; exit 1; }
		exec nsenter --target "\$pid" --mount --net -- docker --host $SOCKET "\$@"
	END
	chmod +x "$WORK/bin/docker"
}

# Ends the engine and all that it started, and takes back what it changed on the machine.
stop_engine() {
	local pid attempt
	if pid=$(engine_process); then
		timeout 30 "$WORK/bin/docker" ps -aq 2>/dev/null | xargs -r timeout 60 "$WORK/bin/docker" rm -fv >/dev/null 2>&1 || true
		kill "$pid" 2>/dev/null || true
		for attempt in $(seq 100); do
			[ -e "/proc/$pid" ] || break
			sleep 0.2
		done
	fi
	# What is left after a crash: processes in our cgroup (nodes) and in our network namespace (engine).
	for attempt in $(seq 50); do
		pid=$( (our_cgroup_processes; ip netns pids "$NETNS" 2>/dev/null) | sort -un)
		[ -n "$pid" ] || break
		[ "$attempt" -lt 50 ] || die "processes of the cluster do not end: $(tr '\n' ' ' <<<"$pid")"
		# shellcheck disable=SC2086 # a list of pids
		kill -9 $pid 2>/dev/null || true
		sleep 0.2
	done
	find /sys/fs/cgroup -depth -type d -path "*/palisade-$ID*" -exec rmdir {} + 2>/dev/null || true
	ip link del "$LINK" 2>/dev/null || true
	ip netns del "$NETNS" 2>/dev/null || true
	restore_sysctls
	rm -rf --one-file-system "$DISK" "$RUN"
	rm -f "$WORK/bin/docker"
}

our_cgroup_processes() {
	find /sys/fs/cgroup -path "*/palisade-$ID/*" -name cgroup.procs -exec cat {} + 2>/dev/null
}

# The settings that belong to the machine as a whole and that systemd, containerd or kubelet of a node change.
SYSCTLS=(
	fs/file-max fs/inotify/max_user_instances fs/inotify/max_user_watches fs/nr_open
	kernel/keys/root_maxbytes kernel/keys/root_maxkeys kernel/panic kernel/panic_on_oops kernel/core_pattern kernel/printk
	vm/max_map_count vm/overcommit_memory vm/panic_on_oom
)

save_sysctls() {
	local name
	[ -e "$RUN/sysctls" ] && return
	for name in "${SYSCTLS[@]}"; do
		[ -r "/proc/sys/$name" ] && printf '%s\t%s\n' "$name" "$(cat "/proc/sys/$name")"
	done >"$RUN/sysctls.part"
	mv "$RUN/sysctls.part" "$RUN/sysctls"
}

restore_sysctls() {
	local name value
	[ -e "$RUN/sysctls" ] || return 0
	while IFS=$'\t' read -r name value; do
		[ "$(cat "/proc/sys/$name")" = "$value" ] || printf '%s' "$value" >"/proc/sys/$name" 2>/dev/null || say "could not put $name back to $value"
	done <"$RUN/sysctls"
}

raise() {
	[ "$(cat "/proc/sys/$1")" -ge "$2" ] || printf '%s' "$2" >"/proc/sys/$1"
}
