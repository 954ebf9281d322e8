/* The structures of the C core, and what its parts share.  See uring.c for how it fits together. */
#ifndef AIOURING_H
#define AIOURING_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "uapi.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef __NR_io_uring_setup /* the same on every architecture but alpha */
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif
#ifndef MADV_DONTFORK
#define MADV_DONTFORK 10
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the provided-buffer ring is written for little-endian machines only"
#endif

enum au_rule {
    AU_CLOSED = -5001,       /* the ring, table or group is closed */
    AU_FORKED = -5002,       /* this process is a fork of the ring's */
    AU_WRONG_THREAD = -5003, /* the ring belongs to another thread */
    AU_DISABLED = -5004,     /* the ring has not been enabled yet */
    AU_FULL = -5005,         /* the submission queue is full: take a turn, then fill again */
    AU_BAD_LENGTH = -5006,   /* start + length reaches beyond the memory */
    AU_BAD_OFFSET = -5007,   /* a file offset below -1 */
    AU_BAD_INDEX = -5008,    /* no such buffer */
    AU_NOT_LENT = -5009,     /* the buffer has another owner */
    AU_RING_FD = -5010,      /* the descriptor is an io_uring */
    AU_FORBIDDEN = -5011,    /* the ring's own restrictions forbid it */
    AU_BAD_SLOT = -5012,     /* no such slot on this ring, or another file is in it */
    AU_REPLACED = -5013,     /* the slot has another buffer by now */
    AU_TOO_MANY = -5014,     /* an advance over more than there is */
    AU_LATE_SLOT = -5015,    /* the kernel would look the slot up later, when it may hold another file */
    AU_UNTAGGED = -5016,     /* the request's user_data does not say whose buffers it takes */
    AU_NOT_IN_PARTS = -5017, /* the operation takes whole buffers, and the group gives out parts */
};

enum {
    AU_AGAIN = 1 << 30,    /* in au_ring_turn()'s count: more is waiting, take another turn soon */
    AU_EVENTS_MAX = 512,   /* completions handed over per turn; one that is a bundle may be the last */
    AU_BUNDLE_MAX = 1024,  /* buffers of one bundle: the kernel's UIO_MAXIOV */
    AU_GUARD_FD = 1 << 8,  /* `how`: the file was named by number, see 3 above */
    AU_RWF_SHIFT = 8,      /* `how`: where AU_RWF_* flags are; HIPRI, which would be AU_GUARD_FD, is not for our rings */
    AU_RWF_MASK = 0xfe,
    AU_SLOTS_AT_ONCE = 64, /* distinct guarded descriptors per turn */
    AU_WHOLE = 32 * 1024,  /* bytes: who asks for so much has it straight from the page cache, see _read_ahead.py */
    AU_AT_ONCE = 1 << 20,  /* bytes that one such read may be; who asks for more gets it in pieces */
    AU_CACHED_MAX = 8 << 20, /* bytes read without a request from one turn to the next */
    AU_ROUNDS_MAX = 4,     /* times one turn looks again */
    AU_VECTOR_MAX = 16,    /* parts that one request of a sender sends */
    AU_HIGH_WATER = 64 * 1024, /* bytes pending above which a sender is crowded, unless it is told otherwise */
    AU_COPY_MAX = 16384,   /* bytes of the caller's that a sender copies rather than have them kept */
    AU_SLOT_BITS = 16,     /* of a registered buffer's key that are its index, see buffers.c */
    AU_SLOT_MASK = (1 << AU_SLOT_BITS) - 1,
    AU_MAP_HUGETLB = MAP_HUGETLB,
};

/* A multishot receive's user_data has its group in it, so that the buffer which a completion names is taken (lent) in
 * the turn that finds the completion, without a call from Python: bit AU_TAG_BIT, and the group's id from
 * AU_TAG_SHIFT on.  AU_CQE_TAKEN, in the flags handed over, says that it was; above the flags, from AU_OFFSET_SHIFT on,
 * is where in the buffer the bytes begin (see shares.c). */
enum { AU_TAG_BIT = 62, AU_TAG_SHIFT = 40, AU_CQE_TAKEN = 1 << 12, AU_OFFSET_SHIFT = 32 };

/* A part of a buffer is called by the buffer's id, and from here on where it begins. */
enum { AU_BUFFER_ID_BITS = 16, AU_BUFFER_ID_MASK = (1 << AU_BUFFER_ID_BITS) - 1 };

/* Where a slot of the table of registered files stands in for a descriptor, its number is this plus the slot's
 * index: negative, so that no system call can take slot 5 for descriptor 5. */
enum { AU_FIRST_SLOT = INT32_MIN };
enum { AU_SLOT_FILLED = -1 }; /* au_slot_set(): a file has come, draw its serial */

enum { RING_CLOSED = 0, RING_DISABLED = 1, AU_RING_ENABLED = 2 };

struct guard {
    int fd;
    dev_t device;
    ino_t inode;
};

typedef struct au_ring {
    int fd;
    int event_fd;  /* ours, made by au_ring_open_eventfd() and emptied by turns; or -1 */
    int signal_fd; /* what the kernel signals: event_fd, or our duplicate of the caller's eventfd; or -1 */
    int state;
    int restricted;
    uint32_t setup_flags, features, sq_entries, cq_entries;
    uint32_t ready;                     /* completions in `events` */
    int64_t events[(AU_EVENTS_MAX + AU_BUNDLE_MAX) * 3]; /* user_data, res, flags of each */
    uint64_t last_user_data;
    uint64_t submitted, completed, enters, wakeups, overflow_flushes, submit_errors;
    uint32_t sends_in_flight; /* requests of senders, which Python does not know one by one */

    uint64_t peeked; /* `completed`, and what was peeked at behind it */
    uint64_t thread;
    uint64_t process;
    void *ring_memory;
    size_t ring_bytes;
    struct au_sqe *sqes;
    size_t sqes_bytes;
    uint32_t *sq_head, *sq_tail, *sq_flags;
    uint32_t *cq_head, *cq_tail, *cq_flags;
    struct au_cqe *cqes;
    uint32_t sq_mask, cq_mask;
    uint32_t filled; /* our tail; the kernel's copy is stored when we submit */
    uint32_t guards_used;
    struct guard guards[AU_SLOTS_AT_ONCE];
    uint8_t *guard_of; /* for each submission entry: 1 + its guard, or 0 */
    struct au_group *unpublished;
    struct au_group **group_table; /* by id, from the first multishot receive of a group on */
    uint32_t group_slots;
    struct au_sender *senders, *last_sender; /* those with something new, first come first served */
    struct au_sender **sender_table;
    uint32_t sender_slots;
    uint8_t *region; /* its memory, which whoever made the region keeps alive as long as the ring is open */
    size_t region_bytes;
    bool region_mapped;    /* it is the kernel's memory, mapped by us */
    bool region_forgotten; /* nobody has a view of it */
    uint32_t wait_slots; /* registered wait arguments in it; 0 where they were not asked for */
    uint32_t *slots; /* the registered files: the serial of the file in each slot, 0 for none */
    uint32_t slot_count;
    uint64_t given_away; /* bytes that were read without a request since the last turn, see cached.c */
    bool drains; /* a request has drained the queue: what follows it may start late */
    struct au_ring *next_live;
} au_ring;

struct au_slot {
    uint8_t *base; /* NULL: the slot is empty */
    uint64_t size;
    uint64_t generation; /* how often its buffer was replaced */
    uint8_t lent;
};

typedef struct au_buffers {
    uint32_t count;
    int registered;
    au_ring *ring;
    struct au_slot *slots; /* Python's, which keeps them as long as this */
} au_buffers;

/* Whose a provided buffer is.  One that was released is the kernel's, although it sees it only after the next turn. */
enum { WITH_KERNEL = 0, LENT = 1, ADDED = 2 };

/* What else is known of a buffer, see shares.c. */
struct au_share {
    uint32_t used;  /* bytes that the kernel has filled, where it fills buffers in parts: where the next one begins */
    uint32_t parts; /* lent */
    uint16_t place; /* where in the ring it was published last, counted as the tail is */
};

typedef struct au_group {
    uint32_t count, with_kernel, unpublished, added, lent, high_water;
    uint32_t capacity; /* entries of the ring; `count` of them have a buffer, the rest when the group grows */
    uint32_t parts; /* lent, of all buffers */
    uint16_t group_id, tail;
    int registered;
    uint64_t published, advances;
    au_ring *ring;
    uint8_t *base;
    uint32_t size;
    struct au_share *shares; /* Python's, which keeps them as long as this */
    bool incremental;        /* buffers are given out in parts */
    bool tagged;             /* requests say by their user_data that they take parts of this group */
    bool bundled;            /* completions may bring several buffers */
    struct au_buf *entries;
    size_t entries_bytes;
    struct au_group *next_unpublished;
    bool queued;
    uint8_t owner[];
} au_group;

typedef struct au_message {
    uint32_t capacity, count; /* of the vector */
    size_t control_size; /* of the control data's memory */
    struct msghdr header;
    struct sockaddr_storage address;
    struct iovec vector[];
} au_message;

struct au_part {
    uint8_t *start;
    uint64_t length;
    au_group *group; /* the buffer's, or NULL for memory of the caller's */
    uint32_t buffer_id;
    uint8_t *copy; /* ours to free, or NULL */
};

/* What a request points to that sends several parts. */
struct au_batch {
    struct msghdr message;
    struct iovec vector[AU_VECTOR_MAX];
};

typedef struct au_sender {
    uint64_t number;      /* what its events are called */
    uint64_t pending;     /* bytes written that the kernel has not taken */
    uint64_t taken;       /* bytes that are done with, ever */
    uint64_t wanted;      /* where `watched`: an event is wanted when as many are */
    uint64_t high_water;  /* bytes */
    uint64_t memory_added; /* parts of the caller's memory that were written, ever */
    uint64_t memory_done;  /* ... that are free again, in the same order */
    int watched, in_flight, failure;
    int crowded;          /* more is pending than the high mark, or held, or sending failed: ask before writing more */
    int held;             /* whoever writes here has more that it holds back, or can write no more */

    int fd;
    au_ring *ring;
    uint64_t name; /* its requests' user_data */
    bool queued, cancel_due;
    struct au_sender *next;
    struct au_part *parts; /* a circle of `capacity`, a power of two */
    uint32_t first, count, capacity;
    struct au_batch *batch; /* made for the first request that sends several parts */
} au_sender;

/* The kernel: three system calls, replaceable by a simulated one. */
struct au_kernel {
    int (*setup)(unsigned entries, void *params);
    int (*enter)(int fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                 const void *argument, size_t size);
    int (*do_register)(int fd, unsigned opcode, void *argument, unsigned count);
};
extern struct au_kernel au_kernel;

uint32_t au_ring_peeked(const au_ring *ring);
int au_ring_advance(au_ring *ring, uint32_t count);

static uint32_t load(const uint32_t *shared) { return __atomic_load_n(shared, __ATOMIC_ACQUIRE); }

static void store(uint32_t *shared, uint32_t value)
{
    __atomic_store_n(shared, value, __ATOMIC_RELEASE);
}

static bool kernel_wants_us(const au_ring *ring)
{
    return (load(ring->sq_flags) & (AU_SQ_CQ_OVERFLOW | AU_SQ_TASKRUN)) != 0;
}

/* What ring.c and its parts need of each other. */
int au_ring_check(au_ring *ring);
int au_ring_register(au_ring *ring, unsigned opcode, void *argument, unsigned count);
static void close_eventfds(au_ring *ring);
static void region_let_go(au_ring *ring);
static void region_in_child(au_ring *ring);

#endif
