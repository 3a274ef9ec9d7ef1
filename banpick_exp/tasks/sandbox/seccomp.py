"""Inside: a filter of system calls, for good. It leaves one process with its threads, its files and nothing else.

Denied are other processes and programs, sockets, signals and settings that reach another process, what the kernel
keeps after the process is gone (System V shared memory, message queues), what goes round the filter (io_uring) and all
administration. Calls of later kernels than this file knows do not exist (ENOSYS), but for a few. Numbers are those of
Linux's tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
KILL, ALLOW, DENY, ABSENT = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Of classic BPF: a word of the call, jumps if equal, greater or equal, a bit is set, and the end."""
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16
"""Offsets in struct seccomp_data; both machines are little-endian, so an argument's low word is its first."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
FIRST_OF_BOTH = 424
"""From here on every machine has the same numbers."""
LATER_ALLOWED = {"close_range": 436, "openat2": 437, "faccessat2": 439, "epoll_pwait2": 441, "futex_waitv": 449}

DENIED = {
    # name: (x86_64, aarch64), None where the machine has none
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "memfd_create": (319, 279),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "capset": (126, 91), "setrlimit": (160, 164),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "seccomp": (317, 277),
    "personality": (135, 92), "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "mknod": (133, None), "mknodat": (259, 33),
    "io_setup": (206, 0), "vmsplice": (278, 75), "sync": (162, 81), "syncfs": (306, 267), "acct": (163, 89),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "syslog": (103, 116),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "quotactl": (179, 60), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "vhangup": (153, 58), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None), "_sysctl": (156, None),
    "nfsservctl": (180, 42),
}  # fmt: skip
NO_FILES = {
    # Changes of files that Landlock does not know, or not in its first versions.
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
}  # fmt: skip
CLONE, CLONE3, CLONE_THREAD = (56, 220), 435, 0x10000
OF_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}
"""Allowed where the first argument is the own process."""
OF_ITSELF_OR_0 = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}
COMMANDS = {
    # name: (x86_64, aarch64), values of the second argument that are denied: they have signals sent to others
    "fcntl": ((72, 25), (8, 15, 10)),  # F_SETOWN, F_SETOWN_EX, F_SETSIG
    "ioctl": ((16, 29), (0x8901, 0x8902, 0x5412)),  # FIOSETOWN, SIOCSPGRP, TIOCSTI
}

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


def program(machine: str, pid: int, *, files: bool) -> list[Instruction]:
    """The filter for a process `pid`. `files`: it has a place of its own to write in."""
    place = list(AUDIT_ARCH).index(machine)

    def of(numbers: tuple[int | None, int | None]) -> int | None:
        return numbers[place]

    made: list[Instruction] = [
        (LOAD, 0, 0, ARCH_AT), (EQUAL, 1, 0, AUDIT_ARCH[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT),
    ]  # fmt: skip
    if machine == "x86_64":
        made += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]
    for numbers in (DENIED if files else DENIED | NO_FILES).values():
        if (number := of(numbers)) is not None:
            made += [(EQUAL, 0, 1, number), (RETURN, 0, 0, DENY)]
    made += _block(of(CLONE), [(LOAD, 0, 0, ARGUMENTS_AT), (ANY_BIT, 1, 0, CLONE_THREAD), (RETURN, 0, 0, DENY)])
    for name, numbers in (OF_ITSELF | OF_ITSELF_OR_0).items():
        own = [pid] if name in OF_ITSELF else [pid, 0]
        jumps = [(EQUAL, len(own) - index, 0, value) for index, value in enumerate(own)]
        made += _block(of(numbers), [(LOAD, 0, 0, ARGUMENTS_AT), *jumps, (RETURN, 0, 0, DENY)])
    for numbers, values in COMMANDS.values():
        jumps = [(EQUAL, 0, 1, value) for value in values]
        denied = [each for jump in jumps for each in (jump, (RETURN, 0, 0, DENY))]
        made += _block(of(numbers), [(LOAD, 0, 0, ARGUMENTS_AT + 8), *denied])
    later = [(EQUAL, len(LATER_ALLOWED) - index, 0, value) for index, value in enumerate(LATER_ALLOWED.values())]
    made += [(AT_LEAST, 0, len(later) + 1, FIRST_OF_BOTH), *later, (RETURN, 0, 0, ABSENT)]
    return [*made, (RETURN, 0, 0, ALLOW)]


def _block(number: int | None, inside: list[Instruction]) -> list[Instruction]:
    """What is asked of one call; who comes to its end may."""
    assert number is not None
    return [(EQUAL, 0, len(inside) + 1, number), *inside, (RETURN, 0, 0, ALLOW)]


def install(*, files: bool) -> None:
    """Raises OSError where this machine has no such filters."""
    if platform.machine() not in AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    made = program(platform.machine(), os.getpid(), files=files)
    code = b"".join(struct.pack("=HBBI", *each) for each in made)
    held = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(made), ctypes.addressof(held))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(given))


def prctl(option: int, first: int, second: int = 0) -> None:
    """Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
    if library.prctl(ctypes.c_int(option), *words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")
