"""Images to make guests from: built out of Debian packages, or imported from files of strangers.

Builds use no loop device, mount or chroot of their own and install nothing on the host. Imported files are hostile
until their header has been checked; they are converted in a jail with an explicit format.
"""
