# Debian's libvirtd in the foreground under `casemate kvm`, in a root folder: asks for capabilities, and runs a domain.
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
emulator=$(python3 -m casemate kvm --wrapper /usr/local/bin -- /usr/bin/qemu-system-x86_64)
cat > /run/modelled/domain.xml <<END
<domain type='kvm'>
  <name>plain</name> <memory unit='MiB'>64</memory> <vcpu>1</vcpu>
  <os> <type arch='x86_64' machine='q35'>hvm</type> </os>
  <cpu mode='host-passthrough' migratable='off'/>
  <devices>
    <emulator>$emulator</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/> <source file='/casemate/run/disk.img'/> <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'> <source path='/casemate/run/serial'/> <target port='0'/> </serial>
    <memballoon model='none'/>
  </devices>
</domain>
END
python3 -m casemate kvm --quiet -- /usr/sbin/libvirtd -f /run/modelled/libvirtd.conf 2> /casemate/run/daemon &
daemon=$!
for _ in $(seq 300); do [ -S /run/modelled/libvirt-sock ] && break; sleep 0.1; done
virsh="timeout 60 virsh -c qemu+unix:///system?socket=/run/modelled/libvirt-sock"
$virsh domcapabilities --emulatorbin "$emulator" --virttype kvm > /casemate/run/capabilities.xml
$virsh create /run/modelled/domain.xml
for _ in $(seq 600); do grep -qs '\.\.' /casemate/run/serial && break; sleep 0.1; done
$virsh list
$virsh destroy plain
kill -KILL $daemon
cat /var/log/libvirt/qemu/plain.log
