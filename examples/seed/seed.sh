#!/bin/sh
# The mail, tried here: a SEV-ES guest with flash that QEMU refuses, the ways out, and the mail's design in a small VMM
# (docs/tutorial-seed.md explains each). Needs QEMU 10 or newer and OVMF, no SEV and no KVM. Some 30 seconds.
#
#   sh examples/seed/seed.sh
#   QEMU=build/qemu-system-x86_64 sh examples/seed/seed.sh        a QEMU of your own build
set -u
casemate=${CASEMATE:-casemate} qemu=${QEMU:-qemu-system-x86_64}
code=${OVMF_CODE:-/usr/share/OVMF/OVMF_CODE_4M.fd} vars=${OVMF_VARS:-/usr/share/OVMF/OVMF_VARS_4M.fd}
bios=${OVMF:-/usr/share/ovmf/OVMF.fd} here=$(dirname "$0")
work=$(mktemp -d) || exit 5
trap 'rm -rf "$work"' EXIT
for file in "$code" "$vars" "$bios"; do
    [ -r "$file" ] || { echo "seed.sh: $file is not there: install ovmf, or set OVMF_CODE, OVMF_VARS and OVMF" >&2; exit 5; }
done

# NAME ERA TYPE FIRMWARE: boots until OVMF looks for something to start, or QEMU ends.
try() {
    cp "$vars" "$work/vars.fd"
    : > "$work/serial"
    case $4 in
    flash) set -- "$1" "$2" "$3" -drive "if=pflash,format=raw,unit=0,readonly=on,file=$code" \
        -drive "if=pflash,format=raw,unit=1,file=$work/vars.fd" ;;
    *) set -- "$1" "$2" "$3" -bios "$bios" ;;
    esac
    name=$1 era=$2 type=$3
    shift 3
    $casemate kvm --quiet --era "$era" -- "$qemu" -accel kvm -M q35,confidential-guest-support=sev0 -cpu EPYC-v4 -m 256 \
        -nodefaults -display none -net none -serial "file:$work/serial" \
        -object "sev-guest,id=sev0,policy=0x5,cbitpos=39,reduced-phys-bits=1,legacy-vm-type=$type" "$@" 2> "$work/said" &
    guest=$!
    while kill -0 $guest 2> "$work/none"; do
        if grep -q BdsDxe "$work/serial"; then
            kill $guest
            wait $guest
            echo "$name: boots"
            return
        fi
        sleep 0.2
    done
    wait $guest
    echo "$name: exit code $?: $(tail -n 1 "$work/said")"
}

try "Linux 6.18, new VM type, flash" linux-6.18 off flash
try "Linux 6.10, new VM type, flash" linux-6.10 off flash
try "Linux 6.18, old VM type, flash" linux-6.18 on flash
try "Linux 6.18, new VM type, -bios" linux-6.18 off bios

command -v cc > "$work/none" || { echo "no C compiler: the mail's design is left out"; exit 0; }
cc -D_GNU_SOURCE -O1 -o "$work/vmm" "$here/../../tests/userkvm/vmm.c" || exit 5
for version in first final; do
    for firmware in -pflash -bios -pflash-hashes; do
        echo "$version version, $firmware: $($casemate conform -- "$work/vmm" $version $firmware 2> "$work/said" |
            sed -n 's/^ *broken *\([a-z-]*\):.*/breaks \1/p' | paste -sd, - | sed 's/^$/keeps every rule/')"
    done
done
