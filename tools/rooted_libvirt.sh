# Debian's libvirtd in the foreground under `casemate kvm`, in a root folder, for as long as /casemate/run/steps.sh takes.
export PYTHONPATH=/casemate/src:/casemate/packages PYTHONDONTWRITEBYTECODE=1
mkdir -p /run/modelled /var/log/libvirt/qemu
cat > /etc/libvirt/qemu.conf <<'END'
security_driver = "none"
namespaces = []
cgroup_controllers = []
seccomp_sandbox = 0
user = "root"
group = "root"
remember_owner = 0
stdio_handler = "file"
END
cat > /run/modelled/libvirtd.conf <<'END'
unix_sock_dir = "/run/modelled"
auth_unix_rw = "none"
END
emulator=$(python3 -m casemate kvm --platform /casemate/run/platform --wrapper /usr/local/bin -- /usr/bin/qemu-system-x86_64)
python3 -m casemate kvm --quiet -- /usr/sbin/libvirtd -f /run/modelled/libvirtd.conf 2> /casemate/run/daemon &
daemon=$!
for _ in $(seq 300); do [ -S /run/modelled/libvirt-sock ] && break; sleep 0.1; done
virsh="timeout 60 virsh -c qemu+unix:///system?socket=/run/modelled/libvirt-sock"
. /casemate/run/steps.sh
kill -KILL $daemon
cat /var/log/libvirt/qemu/*.log
