# shellcheck shell=bash
# kind's node image, from Debian packages and Go modules: what to do where no registry answers.
# The same root directory serves our container engine (engine.sh).

NODE_IMAGE_DIR=$KIND_DIR/node-image
DEBIAN_SUITE=bookworm
DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
# dbus and the like are not needed: nothing logs in to a node.
DEBIAN_PACKAGES=systemd,systemd-sysv,iproute2,iptables,nftables,conntrack,ethtool,socat,kmod,util-linux,procps,mount,ca-certificates,curl,jq,libseccomp2,containerd,runc,docker.io,busybox-static,containernetworking-plugins

# Units without sense in a container, or that would change the machine.
MASKED_UNITS=(
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
	console-getty.service getty.target getty@tty1.service docker.service docker.socket nftables.service
	dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
	kmod.service systemd-modules-load.service systemd-sysctl.service procps.service systemd-binfmt.service
	proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount
	systemd-logind.service systemd-pstore.service systemd-random-seed.service systemd-remount-fs.service systemd-timesyncd.service
	systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket remote-fs.target
)

# Sets NODE_ROOT to the directory with Debian, and ROOT_JOB to what makes it where it is missing (else empty).
begin_node_root() {
	local key
	ROOT_JOB=
	key=$(echo "$DEBIAN_SUITE $DEBIAN_PACKAGES" | content_key)
	NODE_ROOT=$WORK/root-$key
	forget_other root- "root-$key"
	[ -d "$NODE_ROOT" ] && return
	[ "$(id -u)" -eq 0 ] || die "the node image is made by debootstrap, as root: try again as root, or where a registry has kindest/node"
	need_program debootstrap debootstrap
	[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || die "Debian's keys are missing: install the package debian-archive-keyring"
	begin "Installing Debian $DEBIAN_SUITE for the nodes (2 minutes, once)" \
		"Is $DEBIAN_MIRROR reachable (else set DEBIAN_MIRROR), and is there space for 1 GB in $WORK?" install_root
	ROOT_JOB=$JOB
}

install_root() {
	rm -rf --one-file-system "$NODE_ROOT.part"
	# What it mounts must not outlive it.
	nice -n 10 unshare --mount --propagation private debootstrap --variant=minbase "--include=$DEBIAN_PACKAGES" "$DEBIAN_SUITE" "$NODE_ROOT.part" "$DEBIAN_MIRROR" || {
		tail -n 5 "$NODE_ROOT.part/debootstrap/debootstrap.log" 2>/dev/null
		return 1
	}
	rm -rf "$NODE_ROOT.part"/var/{cache/apt,lib/apt/lists}/* "$NODE_ROOT.part"/usr/share/{doc,man,locale,info}/*
	mv "$NODE_ROOT.part" "$NODE_ROOT"
}

# Sets NODE_ARCHIVE to the nodes' file system as a tar; makes it where it is missing. After the root directory and build_tools.
node_archive() {
	local key
	key=$(echo "$NODE_ROOT $TOOLS $PAUSE_VERSION $ETCD_VERSION" | content_key "$NODE_IMAGE_DIR/rootfs" "$NODE_IMAGE_DIR/build.sh" "$NODE_IMAGE_DIR/pack")
	NODE_ARCHIVE=$WORK/node-$key.tar
	forget_other node- "node-$key.tar"
	[ -e "$NODE_ARCHIVE" ] && return
	step "Assembling the node image" "Is there space for 2 GB in $WORK?" assemble_node
}

assemble_node() {
	local stage=$WORK/node-stage top=$WORK/node-stage/top name unit
	rm -rf "$stage"
	mkdir -p "$top/kind/images" "$top/usr/bin" "$top/etc/systemd/system/multi-user.target.wants"
	cp -a "$NODE_IMAGE_DIR/rootfs/." "$top/"
	sed -i "s/@PAUSE@/$PAUSE_VERSION/" "$top/etc/containerd/config.toml"
	echo "$KUBERNETES_VERSION" >"$top/kind/version"

	for name in kubeadm kubectl kubelet; do
		ln -s kubernetes "$top/usr/bin/$name"
	done
	cp "$TOOLS/kubernetes" "$top/usr/bin/kubernetes"
	control_plane_image "$top/kind/images/control-plane.tar"
	pause_image "$top/kind/images/pause.tar"

	for unit in "${MASKED_UNITS[@]}"; do
		ln -s /dev/null "$top/etc/systemd/system/$unit"
	done
	# containerd gives each pod its loopback by this plugin; nodes have it from Kubernetes' packages.
	mkdir -p "$top/opt/cni/bin"
	cp "$NODE_ROOT/usr/lib/cni/loopback" "$top/opt/cni/bin/"
	ln -s /lib/systemd/system/multi-user.target "$top/etc/systemd/system/default.target"
	for unit in images kubelet; do
		ln -s "/etc/systemd/system/$unit.service" "$top/etc/systemd/system/multi-user.target.wants/$unit.service"
	done
	chown -R 0:0 "$top"

	mkdir "$stage/merged"
	unshare --mount --propagation private "$NODE_IMAGE_DIR/pack" "$stage" "$NODE_ROOT" "$NODE_ARCHIVE.part"
	rm -rf "$stage"
	mv "$NODE_ARCHIVE.part" "$NODE_ARCHIVE"
}

# One layer under the names that kubeadm asks for: the program knows by its name which part it is.
control_plane_image() {
	local layer name
	layer=$(mktemp -d "$WORK/layer.XXXXXX")
	mkdir -p "$layer/usr/local/bin"
	cp "$TOOLS/kubernetes" "$layer/usr/local/bin/kubernetes"
	for name in kube-apiserver kube-controller-manager kube-scheduler etcd; do
		ln -s kubernetes "$layer/usr/local/bin/$name"
	done
	make_image "$1" "$layer" '{"Env":["PATH=/usr/local/bin"]}' \
		"registry.k8s.io/kube-apiserver:$KUBERNETES_VERSION" \
		"registry.k8s.io/kube-controller-manager:$KUBERNETES_VERSION" \
		"registry.k8s.io/kube-scheduler:$KUBERNETES_VERSION" \
		"registry.k8s.io/etcd:$ETCD_VERSION"
	rm -rf "$layer"
}

pause_image() {
	local layer
	layer=$(mktemp -d "$WORK/layer.XXXXXX")
	cp "$TOOLS/pause" "$layer/pause"
	make_image "$1" "$layer" '{"Entrypoint":["/pause"],"User":"65535:65535"}' "registry.k8s.io/pause:$PAUSE_VERSION"
	rm -rf "$layer"
}

# Sets DNS_ARCHIVE to the image of the cluster's DNS; makes it where it is missing. After build_tools.
dns_archive() {
	local key
	key=$(echo "$DNS_IMAGE $(go_architecture)" | content_key "$DNS_MODULE")
	DNS_ARCHIVE=$WORK/dns-$key.tar
	forget_other dns- "dns-$key.tar"
	[ -e "$DNS_ARCHIVE" ] && return
	find_go
	step "Building CoreDNS (a minute on two cores, once)" "$(go_hint)" go_build coredns . "$DNS_MODULE"
	step "Assembling the image CoreDNS" "Is there space in $WORK?" assemble_dns
}

assemble_dns() {
	local layer
	layer=$(mktemp -d "$WORK/layer.XXXXXX")
	cp "$TOOLS/coredns" "$layer/coredns"
	make_image "$DNS_ARCHIVE" "$layer" '{"Entrypoint":["/coredns"],"WorkingDir":"/"}' "$DNS_IMAGE"
	rm -rf "$layer"
}

# Sets AGNHOST_ARCHIVE to the image of the tests' pods; makes it where it is missing. After the root directory and
# build_tools. As upstream's it has a shell and small tools beside agnhost; here they are busybox's.
agnhost_archive() {
	AGNHOST_ARCHIVE=$TOOLS/agnhost.tar
	[ -e "$AGNHOST_ARCHIVE" ] || step "Assembling the image agnhost" "Is there space in $WORK?" assemble_agnhost
}

assemble_agnhost() {
	local layer applet
	layer=$(mktemp -d "$WORK/layer.XXXXXX")
	cp "$TOOLS/agnhost" "$layer/agnhost"
	mkdir -p "$layer/bin"
	mkdir -m 1777 "$layer/tmp"
	cp "$NODE_ROOT/bin/busybox" "$layer/bin/busybox"
	for applet in $("$layer/bin/busybox" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$layer/bin/$applet"
	done
	make_image "$AGNHOST_ARCHIVE" "$layer" '{"Entrypoint":["/agnhost"],"Cmd":["pause"],"Env":["PATH=/bin:/"]}' "$AGNHOST_IMAGE"
	rm -rf "$layer"
}
