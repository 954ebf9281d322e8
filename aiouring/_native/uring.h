/* The structures of the C core, and what its parts share.  See uring.c for how it fits together. */
#ifndef AIOURING_H
#define AIOURING_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "uapi.h"

#include <errno.h>
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
    AU_REPLACED = -5011,     /* the slot has another buffer by now */
};

enum {
    AU_AGAIN = 1 << 30,    /* in au_ring_turn()'s count: more is waiting, take another turn soon */
    AU_EVENTS_MAX = 512,   /* completions handed over per turn */
    AU_GUARD_FD = 1 << 8,  /* `how`: the file was named by number, see 3 above */
    AU_SLOTS_AT_ONCE = 64, /* distinct guarded descriptors per turn */
    AU_ROUNDS_MAX = 4,     /* times one turn looks again */
    AU_VECTOR_MAX = 16,    /* parts that one request of a sender sends */
    AU_SLOT_BITS = 16,     /* of a registered buffer's key that are its index, see buffers.c */
    AU_SLOT_MASK = (1 << AU_SLOT_BITS) - 1,
    AU_MAP_HUGETLB = MAP_HUGETLB,
};

enum { RING_CLOSED = 0, RING_DISABLED = 1, RING_ENABLED = 2 };

struct guard {
    int fd;
    dev_t device;
    ino_t inode;
};

typedef struct au_ring {
    int fd;
    int event_fd;
    int state;
    uint32_t setup_flags, features, sq_entries, cq_entries;
    uint32_t ready;                     /* completions in `events` */
    int64_t events[AU_EVENTS_MAX * 3]; /* user_data, res, flags of each */
    uint64_t last_user_data;
    uint64_t submitted, completed, enters, wakeups, overflow_flushes, submit_errors;
    uint32_t sends_in_flight; /* requests of senders, which Python does not know one by one */

    uint64_t thread;
    uint64_t process;
    void *ring_memory;
    size_t ring_bytes;
    struct au_sqe *sqes;
    size_t sqes_bytes;
    uint32_t *sq_head, *sq_tail, *sq_flags;
    uint32_t *cq_head, *cq_tail;
    struct au_cqe *cqes;
    uint32_t sq_mask, cq_mask;
    uint32_t filled; /* our tail; the kernel's copy is stored when we submit */
    uint32_t guards_used;
    struct guard guards[AU_SLOTS_AT_ONCE];
    uint8_t *guard_of; /* for each submission entry: 1 + its guard, or 0 */
    struct au_group *unpublished;
    struct au_sender *senders; /* those with something new */
    struct au_sender **sender_table;
    uint32_t sender_slots;
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

typedef struct au_group {
    uint32_t count, with_kernel, unpublished, lent, high_water;
    uint16_t group_id, tail;
    int registered;
    uint64_t published, advances;
    au_ring *ring;
    uint8_t *base;
    uint32_t size;
    struct au_buf *entries;
    size_t entries_bytes;
    struct au_group *next_unpublished;
    bool queued;
    uint8_t is_lent[];
} au_group;

struct au_part {
    uint8_t *start;
    uint64_t length;
    au_group *group; /* the buffer's, or NULL for memory of the caller's */
    uint32_t buffer_id;
};

typedef struct au_sender {
    uint64_t number;      /* what its events are called */
    uint64_t pending;     /* bytes written that the kernel has not taken */
    uint64_t watermark;   /* where `watched`: an event is wanted when no more than this is pending */
    uint64_t memory_done; /* parts of the caller's memory that are free again, ever */
    int watched, in_flight, failure;

    int fd;
    au_ring *ring;
    uint64_t name; /* its requests' user_data */
    bool queued, cancel_due;
    struct au_sender *next;
    struct au_part *parts; /* a circle of `capacity`, a power of two */
    uint32_t first, count, capacity;
    struct iovec vector[AU_VECTOR_MAX];
    struct msghdr message;
} au_sender;

/* The kernel: three system calls, replaceable by a simulated one. */
struct au_kernel {
    int (*setup)(unsigned entries, void *params);
    int (*enter)(int fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                 const void *argument, size_t size);
    int (*do_register)(int fd, unsigned opcode, void *argument, unsigned count);
};

static uint32_t load(const uint32_t *shared) { return __atomic_load_n(shared, __ATOMIC_ACQUIRE); }

static void store(uint32_t *shared, uint32_t value)
{
    __atomic_store_n(shared, value, __ATOMIC_RELEASE);
}

#endif
