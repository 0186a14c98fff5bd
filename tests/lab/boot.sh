#!/usr/bin/env bash
# A board: sshd in mount and process namespaces of its own, whose one user lives in an arm64 root. `board.py` runs it as
#   unshare --mount --pid --fork --kill-child bash boot.sh ROOT STATE CPUINFO QEMU_CPU ADDRESS PORT ssh|adb
# Everything is mounted privately: when the last process ends, the machine is as before. STATE outlives a power cut.
set -euo pipefail
root=$1 state=$2 cpuinfo=$3 qemu_cpu=$4 address=$5 port=$6 server=$7

mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /srv # sshd wants every folder above its chroot to be root's alone
mkdir -p /srv/board /srv/keys "$state"/{home,sys}
mount --bind "$root" /srv/board
mount -o remount,bind,ro /srv/board

mount -t proc proc /srv/board/proc
mount --bind "$cpuinfo" /srv/board/proc/cpuinfo # must fit QEMU_CPU: libraries choose their kernels by it
mkdir -p "$state"/sys/devices/system/cpu/cpu0/cpufreq "$state"/sys/class/thermal/thermal_zone0
echo 0-3 | tee "$state"/sys/devices/system/cpu/possible >"$state"/sys/devices/system/cpu/present
echo ondemand >"$state"/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
echo 48312 >"$state"/sys/class/thermal/thermal_zone0/temp
mount --bind "$state"/sys /srv/board/sys
mount -t tmpfs -o size=64m,mode=1777 tmpfs /srv/board/tmp
mount -t tmpfs -o size=512k,mode=755 tmpfs /srv/board/dev
for name in null zero random urandom; do
  : >/srv/board/dev/$name
  mount --bind /dev/$name /srv/board/dev/$name
done
ln -s /proc/self/fd /srv/board/dev/fd
mount --bind "$state"/home /srv/board/home/pi
[ -z "${HOME_MB:-}" ] || mount -t tmpfs -o "size=${HOME_MB}m" tmpfs /srv/board/home/pi
chown 1000:1000 /srv/board/home/pi
mount -t tmpfs -o mode=777 tmpfs /srv/board/data/local/tmp # where adb's shell may write

if [ "$server" = adb ]; then
  QEMU_CPU=$qemu_cpu exec python3 "$(dirname "$0")"/adb_device.py /srv/board "$address" "$port"
fi

# The accounts that sshd sees: the machine's own stay as they are.
{ grep -E '^(root|sshd|nobody):' /etc/passwd; echo 'pi:x:1000:1000::/home/pi:/bin/bash'; } >"$state"/passwd
{ cat /etc/group; echo 'pi:x:1000:'; } >"$state"/group
{ cat /etc/shadow; echo 'pi:*:19000:0:99999:7:::'; } >"$state"/shadow
chmod 600 "$state"/shadow
for name in passwd group shadow; do mount --bind "$state"/$name /etc/$name; done

install -m 644 "$state"/id.pub /srv/keys/pi
cat >"$state"/sshd_config <<CONFIG
ListenAddress $address
Port $port
HostKey $state/host
AuthorizedKeysFile /srv/keys/%u
PidFile none
PasswordAuthentication no
UsePAM no
AllowUsers pi
ChrootDirectory /srv/board
SetEnv QEMU_CPU=$qemu_cpu PATH=/usr/local/bin:/usr/bin:/bin
CONFIG
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e -f "$state"/sshd_config
