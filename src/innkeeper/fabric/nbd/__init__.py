"""The NBD server: the fabric's volumes for any NBD client (QEMU, nbdcopy, fio, qemu-img).

Source of the protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

    protocol      numbers and packed structures
    negotiation   from the first byte to a chosen export
    session       one connection's requests and replies
    turn          commits what all sessions staged in one turn of the event loop; group commit of flushes
    server        accepts, checks who is there, supervises sessions

Promises: a write is acknowledged when the kernel has it; a flush on any connection covers every write acknowledged
before it on all of them; a connection holds a bounded amount of memory, whatever its client sends or fails to take
(``session.MAX_OUT_BYTES``, ``MAX_WORKING_BYTES``, one request's ``protocol.MAX_REQUEST_BYTES`` beyond them); what a
client sends harms nobody but that client.
"""
