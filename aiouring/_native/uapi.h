/* The io_uring kernel ABI that aiouring speaks, written out under our own prefix.
 *
 * The system's <linux/io_uring.h> is not used: Debian 12 ships the 6.1 header, which lacks half of
 * what this package needs, and a build must not depend on what is installed.  The ABI is fixed by
 * the kernel for ever; sizes and offsets are asserted at the end of this file, so a slip of the pen
 * does not compile.  Names follow the kernel's, IORING_ and IOSQE_ becoming AU_.
 */
#ifndef AIOURING_UAPI_H
#define AIOURING_UAPI_H

#include <stddef.h>
#include <stdint.h>

/* Submission queue entry: one request, 64 bytes, filled by us and read by the kernel in enter(). */
struct au_sqe {
    uint8_t opcode;
    uint8_t flags;      /* AU_SQE_* */
    uint16_t ioprio;    /* AU_RECVSEND_*, AU_ACCEPT_* for the socket operations */
    int32_t fd;
    uint64_t off;       /* file offset, or the second address of the operation */
    uint64_t addr;      /* memory, or the user_data a cancel looks for */
    uint32_t len;
    uint32_t op_flags;  /* rw_flags, msg_flags, poll events, cancel flags ... */
    uint64_t user_data; /* comes back in the completion */
    uint16_t buf_index; /* registered buffer, or the buffer group with AU_SQE_BUFFER_SELECT */
    uint16_t personality;
    int32_t file_index;
    uint64_t addr3;
    uint64_t pad;
};

/* Completion queue entry. */
struct au_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags; /* AU_CQE_F_*; the buffer id in the upper 16 bits */
};

struct au_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved;
    uint64_t user_addr;
};

struct au_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved;
    uint64_t user_addr;
};

struct au_params {
    uint32_t sq_entries, cq_entries;
    uint32_t flags; /* AU_SETUP_* */
    uint32_t sq_thread_cpu, sq_thread_idle;
    uint32_t features; /* AU_FEAT_*, written by the kernel */
    uint32_t wq_fd;
    uint32_t reserved[3];
    struct au_sq_offsets sq_off;
    struct au_cq_offsets cq_off;
};

/* One entry of a provided-buffer ring.  The ring's tail lies over `reserved` of entry 0: writing all
 * 16 bytes of that entry would destroy the tail (KERNEL.md C5), so only the first 14 are written. */
struct au_buf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    uint16_t reserved;
};

struct au_buf_reg {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t bgid;
    uint16_t flags; /* AU_PBUF_RING_* */
    uint64_t reserved[3];
};

enum {
    AU_PBUF_RING_MMAP = 1, /* since Linux 6.4 */
    AU_PBUF_RING_INC = 2,  /* since Linux 6.12 */
};

/* The argument of AU_REGISTER_FILES_UPDATE. */
struct au_files_update {
    uint32_t offset;
    uint32_t reserved;
    uint64_t fds; /* an array of int32_t */
};

/* The slots that AU_FILE_INDEX_ALLOC picks from.  Since Linux 6.0. */
struct au_file_index_range {
    uint32_t off;
    uint32_t len;
    uint64_t reserved;
};

struct au_buf_status {
    uint32_t buf_group;
    uint32_t head;
    uint32_t reserved[8];
};

/* Registering buffers or files with tags, or a sparse table of them.  Since Linux 5.13. */
struct au_rsrc_register {
    uint32_t nr;
    uint32_t flags; /* AU_RSRC_REGISTER_* */
    uint64_t reserved;
    uint64_t data, tags;
};

/* Replacing some of them in place.  Since Linux 5.13. */
struct au_rsrc_update2 {
    uint32_t offset;
    uint32_t reserved;
    uint64_t data, tags;
    uint32_t nr;
    uint32_t reserved2;
};

/* Cloning another ring's buffers.  Since Linux 6.12; offsets, count and flags since 6.13. */
struct au_clone_buffers {
    uint32_t src_fd;
    uint32_t flags; /* AU_REGISTER_SRC_REGISTERED, AU_CLONE_DST_REPLACE */
    uint32_t src_off, dst_off, nr;
    uint32_t reserved[3];
};

struct au_probe_op {
    uint8_t op, reserved;
    uint16_t flags; /* bit 0: supported */
    uint32_t reserved2;
};

struct au_probe {
    uint8_t last_op, ops_len;
    uint16_t reserved;
    uint32_t reserved2[3];
    struct au_probe_op ops[256];
};

/* The extended argument of enter(): a timeout beside the (unused) signal mask.  Since Linux 5.11. */
struct au_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_size;
    uint32_t min_wait_usec;
    uint64_t timespec;
};

struct au_timespec {
    int64_t seconds;
    int64_t nanoseconds;
};

/* The same from a registered region, named by its offset there.  Since Linux 6.13. */
struct au_reg_wait {
    struct au_timespec time;
    uint32_t min_wait_usec;
    uint32_t flags; /* AU_REG_WAIT_TS: `time` counts; without it there is no timeout */
    uint64_t sigmask;
    uint32_t sigmask_size;
    uint32_t pad[3];
    uint64_t pad2[2];
};

/* Memory shared with the kernel for whatever the flags of its registration say.  Since Linux 6.13. */
struct au_region_desc {
    uint64_t user_addr;
    uint64_t size;
    uint32_t flags;
    uint32_t id;
    uint64_t mmap_offset; /* written by the kernel where it allocates the memory */
    uint64_t reserved[4];
};

struct au_mem_region_reg {
    uint64_t region_uptr; /* struct au_region_desc */
    uint64_t flags;
    uint64_t reserved[2];
};

struct au_clock_register {
    uint32_t clockid;
    uint32_t reserved[3];
};

/* What lies before a message that a multishot receive brings: this, then room for the sender's name, room for control
 * data, both as long as was asked for, and the payload.  The lengths are those before anything was cut off, but for
 * the control data's.  Since Linux 6.0. */
struct au_recvmsg_out {
    uint32_t namelen;
    uint32_t controllen;
    uint32_t payloadlen;
    uint32_t flags; /* what recvmsg(2) calls msg_flags */
};

enum { AU_MESSAGE_HEADER = 16 }; /* sizeof(struct au_recvmsg_out) */

/* One thing that a restricted ring allows.  Since Linux 5.10. */
struct au_restriction {
    uint16_t opcode; /* AU_RESTRICTION_* */
    uint8_t value;   /* a register opcode, an opcode, or AU_SQE_* flags */
    uint8_t reserved;
    uint32_t reserved2[3];
};

/* The argument of OPENAT2.  Since Linux 5.6. */
struct au_open_how {
    uint64_t flags, mode, resolve; /* resolve: AU_RESOLVE_* */
};

/* One of the words that FUTEX_WAITV waits for.  Since Linux 5.16. */
struct au_futex_waitv {
    uint64_t value, address;
    uint32_t flags; /* AU_FUTEX2_* */
    uint32_t reserved;
};

struct au_statx_time {
    int64_t seconds;
    uint32_t nanoseconds;
    int32_t reserved;
};

/* What STATX writes; which fields mean anything, `mask` says.  Since Linux 5.6. */
struct au_statx {
    uint32_t mask; /* AU_STATX_* */
    uint32_t blksize;
    uint64_t attributes; /* AU_STATX_ATTR_*, of those in `attributes_mask` */
    uint32_t nlink, uid, gid;
    uint16_t mode, reserved;
    uint64_t ino, size, blocks, attributes_mask;
    struct au_statx_time atime, btime, ctime, mtime;
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    uint64_t mnt_id;
    uint32_t dio_mem_align, dio_offset_align;
    uint64_t subvol;
    uint32_t atomic_write_unit_min, atomic_write_unit_max, atomic_write_segments_max;
    uint32_t dio_read_offset_align;
    uint32_t atomic_write_unit_max_opt, reserved2;
    uint64_t reserved3[8];
};

enum {
    AU_OP_NOP = 0,
    AU_OP_READV = 1,
    AU_OP_WRITEV = 2,
    AU_OP_FSYNC = 3,
    AU_OP_READ_FIXED = 4,
    AU_OP_WRITE_FIXED = 5,
    AU_OP_POLL_ADD = 6,
    AU_OP_POLL_REMOVE = 7,
    AU_OP_SYNC_FILE_RANGE = 8,
    AU_OP_SENDMSG = 9,
    AU_OP_RECVMSG = 10,
    AU_OP_TIMEOUT = 11,
    AU_OP_TIMEOUT_REMOVE = 12,
    AU_OP_ACCEPT = 13,
    AU_OP_ASYNC_CANCEL = 14,
    AU_OP_LINK_TIMEOUT = 15,
    AU_OP_CONNECT = 16,
    AU_OP_FALLOCATE = 17,
    AU_OP_OPENAT = 18,
    AU_OP_CLOSE = 19,
    AU_OP_FILES_UPDATE = 20,
    AU_OP_STATX = 21,
    AU_OP_READ = 22,
    AU_OP_WRITE = 23,
    AU_OP_FADVISE = 24,
    AU_OP_MADVISE = 25,
    AU_OP_SEND = 26,
    AU_OP_RECV = 27,
    AU_OP_OPENAT2 = 28,
    AU_OP_EPOLL_CTL = 29,
    AU_OP_SPLICE = 30,
    AU_OP_PROVIDE_BUFFERS = 31,
    AU_OP_REMOVE_BUFFERS = 32,
    AU_OP_TEE = 33,
    AU_OP_SHUTDOWN = 34,
    AU_OP_RENAMEAT = 35,
    AU_OP_UNLINKAT = 36,
    AU_OP_MKDIRAT = 37,
    AU_OP_SYMLINKAT = 38,
    AU_OP_LINKAT = 39,
    AU_OP_MSG_RING = 40,
    AU_OP_FSETXATTR = 41,
    AU_OP_SETXATTR = 42,
    AU_OP_FGETXATTR = 43,
    AU_OP_GETXATTR = 44,
    AU_OP_SOCKET = 45,
    AU_OP_URING_CMD = 46,
    AU_OP_SEND_ZC = 47,
    AU_OP_SENDMSG_ZC = 48,
    AU_OP_READ_MULTISHOT = 49,
    AU_OP_WAITID = 50,
    AU_OP_FUTEX_WAIT = 51,
    AU_OP_FUTEX_WAKE = 52,
    AU_OP_FUTEX_WAITV = 53,
    AU_OP_FIXED_FD_INSTALL = 54,
    AU_OP_FTRUNCATE = 55,
    AU_OP_BIND = 56,
    AU_OP_LISTEN = 57,
    AU_OP_RECV_ZC = 58,
    AU_OP_EPOLL_WAIT = 59,
    AU_OP_READV_FIXED = 60,
    AU_OP_WRITEV_FIXED = 61,
    AU_OP_PIPE = 62,
};

enum {
    AU_SETUP_CQSIZE = 1u << 3,        /* since Linux 5.5 */
    AU_SETUP_CLAMP = 1u << 4,         /* since Linux 5.6 */
    AU_SETUP_R_DISABLED = 1u << 6,    /* since Linux 5.10 */
    AU_SETUP_SUBMIT_ALL = 1u << 7,    /* since Linux 5.18 */
    AU_SETUP_COOP_TASKRUN = 1u << 8,  /* since Linux 5.19 */
    AU_SETUP_TASKRUN_FLAG = 1u << 9,  /* since Linux 5.19 */
    AU_SETUP_SINGLE_ISSUER = 1u << 12, /* since Linux 6.0 */
    AU_SETUP_DEFER_TASKRUN = 1u << 13, /* since Linux 6.1 */
    AU_SETUP_NO_SQARRAY = 1u << 16,    /* since Linux 6.6 */
};

enum {
    AU_FEAT_SINGLE_MMAP = 1u << 0,
    AU_FEAT_NODROP = 1u << 1,
    AU_FEAT_SUBMIT_STABLE = 1u << 2,
    AU_FEAT_RW_CUR_POS = 1u << 3,
    AU_FEAT_CUR_PERSONALITY = 1u << 4,
    AU_FEAT_FAST_POLL = 1u << 5,
    AU_FEAT_POLL_32BITS = 1u << 6,
    AU_FEAT_SQPOLL_NONFIXED = 1u << 7,
    AU_FEAT_EXT_ARG = 1u << 8,
    AU_FEAT_NATIVE_WORKERS = 1u << 9,
    AU_FEAT_RSRC_TAGS = 1u << 10,
    AU_FEAT_CQE_SKIP = 1u << 11,
    AU_FEAT_LINKED_FILE = 1u << 12,
    AU_FEAT_REG_REG_RING = 1u << 13,
    AU_FEAT_RECVSEND_BUNDLE = 1u << 14,
    AU_FEAT_MIN_TIMEOUT = 1u << 15,
    AU_FEAT_RW_ATTR = 1u << 16,
    AU_FEAT_NO_IOWAIT = 1u << 17,
};

enum {
    AU_SQE_FIXED_FILE = 1u << 0,
    AU_SQE_IO_DRAIN = 1u << 1,         /* since Linux 5.2 */
    AU_SQE_IO_LINK = 1u << 2,          /* since Linux 5.3 */
    AU_SQE_IO_HARDLINK = 1u << 3,      /* since Linux 5.5 */
    AU_SQE_ASYNC = 1u << 4,            /* since Linux 5.6 */
    AU_SQE_BUFFER_SELECT = 1u << 5,    /* since Linux 5.7 */
    AU_SQE_CQE_SKIP_SUCCESS = 1u << 6, /* since Linux 5.17 */
};

enum {
    AU_CQE_F_BUFFER = 1u << 0,
    AU_CQE_F_MORE = 1u << 1,
    AU_CQE_F_SOCK_NONEMPTY = 1u << 2,
    AU_CQE_F_NOTIF = 1u << 3,
    AU_CQE_F_BUF_MORE = 1u << 4, /* since Linux 6.12 */
    AU_CQE_BUFFER_SHIFT = 16,
};

enum {
    AU_RECVSEND_POLL_FIRST = 1u << 0,      /* since Linux 5.19 */
    AU_RECVSEND_FIXED_BUF = 1u << 2,       /* since Linux 6.0, for SEND_ZC; since 6.15 for SENDMSG_ZC */
    AU_SEND_ZC_REPORT_USAGE = 1u << 3,     /* since Linux 6.2 */
    AU_RECVSEND_BUNDLE = 1u << 4,          /* since Linux 6.10 */
    AU_RECV_MULTISHOT = 1u << 1,      /* since Linux 6.0 */
};

enum { AU_ACCEPT_MULTISHOT = 1u << 0 }; /* since Linux 5.19 */

enum { AU_POLL_ADD_MULTI = 1u << 0 }; /* in len; since Linux 5.13 */

enum {
    AU_CANCEL_ALL = 1u << 0, /* these three since Linux 5.19 */
    AU_CANCEL_FD = 1u << 1,
    AU_CANCEL_ANY = 1u << 2,
};

enum { AU_MSG_DATA = 0 }; /* of AU_OP_MSG_RING; since Linux 5.18 */

/* Commands to sockets, of AU_OP_URING_CMD. */
enum {
    AU_SOCKET_SIOCINQ = 0,    /* these two since Linux 6.6 */
    AU_SOCKET_SIOCOUTQ = 1,
    AU_SOCKET_GETSOCKOPT = 2, /* these two since Linux 6.7 */
    AU_SOCKET_SETSOCKOPT = 3,
};

enum { AU_FSYNC_DATASYNC = 1u << 0 };

enum { AU_AT_FDCWD = -100 }; /* where a directory is expected: the working directory */

/* How the name of a file is resolved: OPENAT2.  Since Linux 5.6. */
enum {
    AU_RESOLVE_NO_XDEV = 0x01,
    AU_RESOLVE_NO_MAGICLINKS = 0x02,
    AU_RESOLVE_NO_SYMLINKS = 0x04,
    AU_RESOLVE_BENEATH = 0x08,
    AU_RESOLVE_IN_ROOT = 0x10,
    AU_RESOLVE_CACHED = 0x20, /* since Linux 5.12 */
};

/* What a name stands for: STATX, UNLINKAT, LINKAT. */
enum {
    AU_AT_SYMLINK_NOFOLLOW = 0x100,
    AU_AT_REMOVEDIR = 0x200,
    AU_AT_SYMLINK_FOLLOW = 0x400,
    AU_AT_NO_AUTOMOUNT = 0x800,
    AU_AT_EMPTY_PATH = 0x1000,
    AU_AT_STATX_FORCE_SYNC = 0x2000,
    AU_AT_STATX_DONT_SYNC = 0x4000,
};

enum {
    AU_RENAME_NOREPLACE = 1u << 0,
    AU_RENAME_EXCHANGE = 1u << 1,
    AU_RENAME_WHITEOUT = 1u << 2,
};

/* What STATX is asked for, and what it answered. */
enum {
    AU_STATX_TYPE = 0x0001,
    AU_STATX_MODE = 0x0002,
    AU_STATX_NLINK = 0x0004,
    AU_STATX_UID = 0x0008,
    AU_STATX_GID = 0x0010,
    AU_STATX_ATIME = 0x0020,
    AU_STATX_MTIME = 0x0040,
    AU_STATX_CTIME = 0x0080,
    AU_STATX_INO = 0x0100,
    AU_STATX_SIZE = 0x0200,
    AU_STATX_BLOCKS = 0x0400,
    AU_STATX_BTIME = 0x0800,
    AU_STATX_MNT_ID = 0x1000,        /* since Linux 5.8 */
    AU_STATX_DIOALIGN = 0x2000,      /* since Linux 6.1 */
    AU_STATX_MNT_ID_UNIQUE = 0x4000, /* since Linux 6.8 */
    AU_STATX_SUBVOL = 0x8000,        /* since Linux 6.10 */
    AU_STATX_WRITE_ATOMIC = 0x10000, /* since Linux 6.11 */
    AU_STATX_DIO_READ_ALIGN = 0x20000, /* since Linux 6.14 */
};

enum {
    AU_STATX_ATTR_COMPRESSED = 0x0004,
    AU_STATX_ATTR_IMMUTABLE = 0x0010,
    AU_STATX_ATTR_APPEND = 0x0020,
    AU_STATX_ATTR_NODUMP = 0x0040,
    AU_STATX_ATTR_ENCRYPTED = 0x0800,
    AU_STATX_ATTR_AUTOMOUNT = 0x1000,
    AU_STATX_ATTR_MOUNT_ROOT = 0x2000,
    AU_STATX_ATTR_VERITY = 0x100000,
    AU_STATX_ATTR_DAX = 0x200000,
    AU_STATX_ATTR_WRITE_ATOMIC = 0x400000,
};

enum {
    AU_FALLOC_FL_KEEP_SIZE = 0x01,
    AU_FALLOC_FL_PUNCH_HOLE = 0x02,
    AU_FALLOC_FL_COLLAPSE_RANGE = 0x08,
    AU_FALLOC_FL_ZERO_RANGE = 0x10,
    AU_FALLOC_FL_INSERT_RANGE = 0x20,
    AU_FALLOC_FL_UNSHARE_RANGE = 0x40,
};

enum {
    AU_SYNC_FILE_RANGE_WAIT_BEFORE = 1u << 0,
    AU_SYNC_FILE_RANGE_WRITE = 1u << 1,
    AU_SYNC_FILE_RANGE_WAIT_AFTER = 1u << 2,
};

/* Advice on memory that Python's mmap module has no names for in every version. */
enum {
    AU_MADV_COLD = 20,
    AU_MADV_PAGEOUT = 21,
    AU_MADV_POPULATE_READ = 22,  /* since Linux 5.14 */
    AU_MADV_POPULATE_WRITE = 23, /* since Linux 5.14 */
    AU_MADV_COLLAPSE = 25,       /* since Linux 6.1 */
};

enum {
    AU_FUTEX2_SIZE_U32 = 0x02,
    AU_FUTEX2_PRIVATE = 128,
};

/* How one read or write is done. */
enum {
    AU_RWF_HIPRI = 1u << 0,
    AU_RWF_DSYNC = 1u << 1,
    AU_RWF_SYNC = 1u << 2,
    AU_RWF_NOWAIT = 1u << 3,
    AU_RWF_APPEND = 1u << 4,
    AU_RWF_NOAPPEND = 1u << 5, /* since Linux 6.9 */
    AU_RWF_ATOMIC = 1u << 6,   /* since Linux 6.11 */
    AU_RWF_DONTCACHE = 1u << 7, /* since Linux 6.14 */
};

enum { AU_FIXED_FD_NO_CLOEXEC = 1u << 0 }; /* since Linux 6.8 */

enum {
    AU_FILES_EMPTY = -1, /* in an array of descriptors: this slot is to be empty */
    AU_FILES_SKIP = -2,  /* ... is to stay as it is; since Linux 5.12 */
};

enum { AU_FILE_INDEX_ALLOC = 0xffffffffu }; /* the kernel picks the slot; since Linux 5.19 */

enum {
    AU_SQ_CQ_OVERFLOW = 1u << 1,
    AU_SQ_TASKRUN = 1u << 2,
};

/* In the completion queue's flags, written by us: do not signal the eventfd.  Since Linux 5.8. */
enum { AU_CQ_EVENTFD_DISABLED = 1u << 0 };

enum {
    AU_ENTER_GETEVENTS = 1u << 0,
    AU_ENTER_EXT_ARG = 1u << 3,     /* since Linux 5.11 */
    AU_ENTER_ABS_TIMER = 1u << 5,   /* since Linux 6.12 */
    AU_ENTER_EXT_ARG_REG = 1u << 6, /* since Linux 6.13 */
};

enum {
    AU_REGISTER_BUFFERS = 0,
    AU_UNREGISTER_BUFFERS = 1,
    AU_REGISTER_FILES = 2,
    AU_UNREGISTER_FILES = 3,
    AU_REGISTER_EVENTFD = 4,
    AU_UNREGISTER_EVENTFD = 5,
    AU_REGISTER_FILES_UPDATE = 6,
    AU_REGISTER_PROBE = 8,
    AU_REGISTER_RESTRICTIONS = 11,    /* since Linux 5.10 */
    AU_REGISTER_ENABLE_RINGS = 12,    /* since Linux 5.10 */
    AU_REGISTER_FILES2 = 13,          /* these four since Linux 5.13 */
    AU_REGISTER_FILES_UPDATE2 = 14,
    AU_REGISTER_BUFFERS2 = 15,
    AU_REGISTER_BUFFERS_UPDATE = 16,
    AU_REGISTER_PBUF_RING = 22,       /* since Linux 5.19 */
    AU_UNREGISTER_PBUF_RING = 23,     /* since Linux 5.19 */
    AU_REGISTER_FILE_ALLOC_RANGE = 25, /* since Linux 6.0 */
    AU_REGISTER_PBUF_STATUS = 26,     /* since Linux 6.8 */
    AU_REGISTER_CLOCK = 29,           /* since Linux 6.12 */
    AU_REGISTER_CLONE_BUFFERS = 30,   /* since Linux 6.12 */
    AU_REGISTER_MEM_REGION = 34,      /* since Linux 6.13 */
};

enum { AU_MEM_REGION_TYPE_USER = 1u << 0 };     /* in the description: the memory is ours */
enum { AU_MEM_REGION_REG_WAIT_ARG = 1u << 0 };  /* in the registration: it holds au_reg_wait */
enum { AU_REG_WAIT_TS = 1u << 0 };

enum {
    AU_RESTRICTION_REGISTER_OP = 0,
    AU_RESTRICTION_SQE_OP = 1,
    AU_RESTRICTION_SQE_FLAGS_ALLOWED = 2,
    AU_RESTRICTION_SQE_FLAGS_REQUIRED = 3,
};

enum { AU_RSRC_REGISTER_SPARSE = 1u << 0 }; /* since Linux 5.19 */

enum { AU_CLONE_DST_REPLACE = 1u << 1 }; /* since Linux 6.13 */

#define AU_OFF_SQ_RING 0ULL
#define AU_OFF_SQES 0x10000000ULL

/* The most one read or write moves, MAX_RW_COUNT in the kernel. */
#define AU_MAX_TRANSFER 0x7ffff000LL
#define AU_MAX_BUFFERS 16384
#define AU_MAX_VECTORS 1024 /* ranges in one readv or writev, UIO_MAXIOV */
#define AU_MAX_BUFFER_BYTES (1LL << 30)
#define AU_MAX_CONTROL (1 << 20) /* bytes of control data; the kernel has a limit of its own (optmem_max) */
#define AU_MAX_NAME 128      /* sizeof(struct sockaddr_storage) */
#define AU_MAX_FUTEXES 128 /* words in one waitv, FUTEX_WAITV_MAX */
#define AU_MAX_FILES (1 << 20)
#define AU_MAX_GROUP_ENTRIES 32768
#define AU_MAX_GROUP_ID 65535

#define AU_ASSERT_OFFSET(type, member, value) \
    _Static_assert(offsetof(struct type, member) == (value), #type "." #member " is misplaced")

_Static_assert(sizeof(struct au_sqe) == 64, "au_sqe");
_Static_assert(sizeof(struct au_cqe) == 16, "au_cqe");
_Static_assert(sizeof(struct au_sq_offsets) == 40, "au_sq_offsets");
_Static_assert(sizeof(struct au_cq_offsets) == 40, "au_cq_offsets");
_Static_assert(sizeof(struct au_params) == 120, "au_params");
_Static_assert(sizeof(struct au_buf) == 16, "au_buf");
_Static_assert(sizeof(struct au_buf_reg) == 40, "au_buf_reg");
_Static_assert(sizeof(struct au_buf_status) == 40, "au_buf_status");
_Static_assert(sizeof(struct au_files_update) == 16, "au_files_update");
_Static_assert(sizeof(struct au_file_index_range) == 16, "au_file_index_range");
_Static_assert(sizeof(struct au_rsrc_register) == 32, "au_rsrc_register");
_Static_assert(sizeof(struct au_rsrc_update2) == 32, "au_rsrc_update2");
_Static_assert(sizeof(struct au_clone_buffers) == 32, "au_clone_buffers");
_Static_assert(sizeof(struct au_probe_op) == 8, "au_probe_op");
_Static_assert(sizeof(struct au_probe) == 16 + 256 * 8, "au_probe");
_Static_assert(sizeof(struct au_getevents_arg) == 24, "au_getevents_arg");
_Static_assert(sizeof(struct au_timespec) == 16, "au_timespec");
_Static_assert(sizeof(struct au_reg_wait) == 64, "au_reg_wait");
_Static_assert(sizeof(struct au_region_desc) == 64, "au_region_desc");
_Static_assert(sizeof(struct au_mem_region_reg) == 32, "au_mem_region_reg");
_Static_assert(sizeof(struct au_clock_register) == 16, "au_clock_register");
_Static_assert(sizeof(struct au_restriction) == 16, "au_restriction");
_Static_assert(sizeof(struct au_open_how) == 24, "au_open_how");
_Static_assert(sizeof(struct au_futex_waitv) == 24, "au_futex_waitv");
_Static_assert(sizeof(struct au_statx_time) == 16, "au_statx_time");
_Static_assert(sizeof(struct au_statx) == 256, "au_statx");
AU_ASSERT_OFFSET(au_statx, mode, 28);
AU_ASSERT_OFFSET(au_statx, ino, 32);
AU_ASSERT_OFFSET(au_statx, atime, 64);
AU_ASSERT_OFFSET(au_statx, rdev_major, 128);
AU_ASSERT_OFFSET(au_statx, mnt_id, 144);
AU_ASSERT_OFFSET(au_statx, dio_mem_align, 152);
AU_ASSERT_OFFSET(au_statx, subvol, 160);
AU_ASSERT_OFFSET(au_statx, atomic_write_unit_min, 168);
AU_ASSERT_OFFSET(au_statx, dio_read_offset_align, 180);
AU_ASSERT_OFFSET(au_sqe, addr3, 48);
_Static_assert(sizeof(struct au_recvmsg_out) == AU_MESSAGE_HEADER, "au_recvmsg_out");
AU_ASSERT_OFFSET(au_reg_wait, min_wait_usec, 16);
AU_ASSERT_OFFSET(au_reg_wait, sigmask, 24);
AU_ASSERT_OFFSET(au_region_desc, mmap_offset, 24);
AU_ASSERT_OFFSET(au_restriction, value, 2);
AU_ASSERT_OFFSET(au_sqe, off, 8);
AU_ASSERT_OFFSET(au_sqe, addr, 16);
AU_ASSERT_OFFSET(au_sqe, len, 24);
AU_ASSERT_OFFSET(au_sqe, op_flags, 28);
AU_ASSERT_OFFSET(au_sqe, user_data, 32);
AU_ASSERT_OFFSET(au_sqe, buf_index, 40);
AU_ASSERT_OFFSET(au_sqe, file_index, 44);
AU_ASSERT_OFFSET(au_sqe, addr3, 48);
AU_ASSERT_OFFSET(au_params, features, 20);
AU_ASSERT_OFFSET(au_params, sq_off, 40);
AU_ASSERT_OFFSET(au_params, cq_off, 80);
AU_ASSERT_OFFSET(au_sq_offsets, array, 24);
AU_ASSERT_OFFSET(au_cq_offsets, cqes, 20);
AU_ASSERT_OFFSET(au_cq_offsets, flags, 24);
AU_ASSERT_OFFSET(au_files_update, fds, 8);
AU_ASSERT_OFFSET(au_file_index_range, len, 4);
AU_ASSERT_OFFSET(au_rsrc_register, data, 16);
AU_ASSERT_OFFSET(au_rsrc_update2, data, 8);
AU_ASSERT_OFFSET(au_rsrc_update2, nr, 24);
AU_ASSERT_OFFSET(au_clone_buffers, nr, 16);
AU_ASSERT_OFFSET(au_buf, bid, 12);
AU_ASSERT_OFFSET(au_buf, reserved, 14);
AU_ASSERT_OFFSET(au_buf_reg, bgid, 12);

#endif
