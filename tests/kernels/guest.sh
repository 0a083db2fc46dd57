#!/bin/bash
# Prepares a guest, then runs a program there: guest.sh FOLDER PROGRAM...
#
# The guest's root is this machine's file system through a 9p export that caches nothing, so that
# every start of a program reads it again. This puts the same files, from a second export that caches
# (they do not change while it runs), below a layer in memory that can be written.
set -euo pipefail
readonly folder=$1 # where the exit status goes; shared with the machine outside
shift
checkout=$(realpath "$(dirname "$0")"/../..)
readonly checkout

readonly lower=/run/kernels/lower upper=/run/kernels/upper root=/run/kernels/root
mkdir -p $lower $upper $root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 kernels $lower
mount -t tmpfs none $upper
mkdir $upper/{changed,work}
mount -t overlay -o lowerdir=$lower,upperdir=$upper/changed,workdir=$upper/work none $root
for system in proc sys dev run tmp; do
	mount --rbind /$system $root/$system
done
mkdir -p $root/usr/lib/modules $root/"$folder"
mount --bind /usr/lib/modules $root/usr/lib/modules
mount --bind "$folder" $root/"$folder"
# There is no udev that would load drivers for devices, nothing that would load what a bridge's
# sysctls belong to, and no kmod in sight of what opens /dev/net/tun.
modprobe --all virtio_net br_netfilter tun

status=0
chroot $root env --chdir="$checkout" "$@" || status=$?
echo $status >"$folder"/status
