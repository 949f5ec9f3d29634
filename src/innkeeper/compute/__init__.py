"""Guests on QEMU: command line, QMP, guest agent, processes, memory, firmware, cloud-init seeds.

May touch: processes through ``system.process``, the vm's run and state directories, control groups, ``/dev/kvm``,
taps that exist already. Of the fabric it knows an NBD socket and the name of an export, of the state nothing.
Promises that a guest outlives the daemon, runs under its own uid without privileges, and that a start that fails leaves
nothing behind. How guests run is in ``docs/guests.md``.

What the daemon uses:

    inputs      machine_for(vm, machine=…, accelerator=…, exports={disk id: NbdExport(socket, export)}, nics=[NicInput],
                ovmf_code=…, iso=NbdExport|None, seed=Path|None, ports=layout.disks|None) -> MachineInputs
                NicInput(nic_id, mac, tap, port=NIC_PORTS[nic.index], mtu)
    launcher    GuestPlace.of(paths, vm_id, uid)
    guest       Guest.start(machine, place, on_change) · Guest.restore(machine, place, MemoryImage, on_change)
                Guest.adopt(vm_id, name, place, ProcessIdentity, on_change) · fence_process(identity, place)
                guest.state, reason, identity, layout, agent, monitor
                guest.shutdown(timeout_s) poweroff() pause() resume() reset() save(image) capture(image, at_instant)
                attach_disk(disk_id, NbdExport) detach_disk(disk_id) attach_nic(…) detach_nic(nic_id) change_media(iso)
                wait_ended() release()
    agent       guest.agent.ready(timeout_s) exec(argv, stdin=…, timeout_s=…) interfaces()
                async with guest.agent.frozen_file_systems(max_frozen_s=…): … always thawed after it
    memory      MemoryImage(directory): exists() layout() size_bytes discard(); Layout.disks: disk id -> root port
    adoption    ProcessIdentity(pid, start_ticks)
    firmware    find_uefi(secure_boot=…) -> UefiFirmware(code, …)
                pack_tpm(dir) -> bytes, unpack_tpm(bytes, dir, uid)
    seed        seed_image(SeedInputs) -> bytes
    accelerator probe(...) -> Accelerator found by booting a kernel
    qemu        installed() -> Qemu(version, machine)
"""
