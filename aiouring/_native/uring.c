/* The C core owns the memory shared with the kernel: the two queues, the table of registered buffers
 * and the rings of provided buffers.  Python sees integers and opaque handles, never an address it
 * could get wrong.
 *
 * How this fits together
 *
 * 1. A ring is made disabled and is enabled by the thread that will use it; from then on that thread
 *    alone may touch it.  Every entry point checks that, and that this is still the process that made
 *    the ring: our mappings are MADV_DONTFORK, so a child that touched them would crash.  A fork
 *    handler closes the child's copies of our descriptors, because a child that keeps the ring's file
 *    open keeps the parent's requests alive after the parent has closed it (KERNEL.md E3).
 *
 * 2. au_prepare*() fill one submission entry each.  Nothing reaches the kernel before au_ring_turn(),
 *    which publishes returned buffers, submits everything in one enter(), drains the completions into
 *    a flat array of integers, empties the eventfd and *looks again*: what arrives while it works
 *    would otherwise be slept upon (KERNEL.md C1, E4, E5).
 *
 * 3. A request that is filled but not submitted must not meet a descriptor that was closed and opened
 *    again in between, or one connection's bytes go to another (KERNEL.md E12).  A caller that names a
 *    file by a bare number has the file's identity (device, inode) noted when the request is filled and
 *    compared before it is submitted: two fstat() per distinct descriptor and turn, not per request.
 *    A mismatch turns the entry's descriptor into -1, and the kernel answers EBADF.  Callers that name
 *    a Python object are checked in Python against the object itself.
 *
 * 4. Each buffer has one owner, kept here.  A registered buffer is free or lent.  A provided buffer is
 *    with the kernel or lent; what the kernel reports and what is returned are checked against that, so
 *    neither a double release nor an over-full ring can be expressed (KERNEL.md E8).
 *
 * The structures themselves are allocated by Python (ffi.new) and freed with their last reference.  A
 * finalizer must not free them: the garbage collector runs the finalizers of a whole cycle first, and some
 * coroutine's may still want to cancel its request on a ring that was "finalized" a moment before.  Closing
 * leaves the structure valid and every function answering AU_CLOSED.
 *
 * Functions return 0 or a count, a negative errno from the kernel, or a negative enum au_rule.
 */
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
};

enum {
    AU_AGAIN = 1 << 30,    /* in au_ring_turn()'s count: more is waiting, take another turn soon */
    AU_EVENTS_MAX = 512,   /* completions handed over per turn */
    AU_GUARD_FD = 1 << 8,  /* `how`: the file was named by number, see 3 above */
    AU_SLOTS_AT_ONCE = 64, /* distinct guarded descriptors per turn */
    AU_ROUNDS_MAX = 4,     /* times one turn looks again */
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
    struct au_ring *next_live;
} au_ring;

typedef struct au_buffers {
    uint32_t count;
    int registered;
    au_ring *ring;
    uint8_t *base;
    uint64_t size, stride;
    uint8_t lent[];
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

/* ---- the kernel ------------------------------------------------------------------------------- */

struct au_kernel {
    int (*setup)(unsigned entries, void *params);
    int (*enter)(int fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                 const void *argument, size_t size);
    int (*do_register)(int fd, unsigned opcode, void *argument, unsigned count);
};

int au_kernel_setup(unsigned entries, void *params)
{
    long rc = syscall(__NR_io_uring_setup, entries, params);
    return rc < 0 ? -errno : (int)rc;
}

int au_kernel_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                    const void *argument, size_t size)
{
    long rc = syscall(__NR_io_uring_enter, fd, to_submit, min_complete, flags, argument, size);
    return rc < 0 ? -errno : (int)rc;
}

int au_kernel_register(int fd, unsigned opcode, void *argument, unsigned count)
{
    long rc = syscall(__NR_io_uring_register, fd, opcode, argument, count);
    return rc < 0 ? -errno : (int)rc;
}

struct au_kernel au_kernel = {au_kernel_setup, au_kernel_enter, au_kernel_register};

static uint32_t load(const uint32_t *shared) { return __atomic_load_n(shared, __ATOMIC_ACQUIRE); }

static void store(uint32_t *shared, uint32_t value)
{
    __atomic_store_n(shared, value, __ATOMIC_RELEASE);
}

/* ---- threads and processes -------------------------------------------------------------------- */

static pthread_mutex_t live_lock = PTHREAD_MUTEX_INITIALIZER;
static au_ring *live_rings;
static uint64_t process_number = 1; /* one more in every fork */

static uint64_t this_thread(void)
{
    /* A pthread_t is used again after its thread has died; these numbers never are. */
    static uint64_t last;
    static __thread uint64_t number;
    if (number == 0)
        number = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return number;
}

static void before_fork(void) { pthread_mutex_lock(&live_lock); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&live_lock); }

static void after_fork_in_child(void)
{
    process_number++;
    for (au_ring *ring = live_rings; ring; ring = ring->next_live) {
        close(ring->fd);
        if (ring->event_fd >= 0)
            close(ring->event_fd);
        ring->fd = ring->event_fd = -1;
    }
    live_rings = NULL;
    pthread_mutex_unlock(&live_lock);
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int au_ring_check(au_ring *ring)
{
    if (ring->process != process_number)
        return AU_FORKED;
    if (ring->state == RING_CLOSED)
        return AU_CLOSED;
    if (ring->state == RING_ENABLED && ring->thread != this_thread())
        return AU_WRONG_THREAD;
    return 0;
}

/* ---- setting up and closing ------------------------------------------------------------------- */

static void *map(int fd, size_t bytes, uint64_t offset)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)offset);
    if (memory == MAP_FAILED)
        return NULL;
    madvise(memory, bytes, MADV_DONTFORK);
    return memory;
}

static void let_go(au_ring *ring)
{
    if (ring->ring_memory)
        munmap(ring->ring_memory, ring->ring_bytes);
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_bytes);
    if (ring->fd >= 0)
        close(ring->fd);
    if (ring->event_fd >= 0)
        close(ring->event_fd);
    free(ring->guard_of);
    ring->guard_of = NULL;
    ring->ring_memory = NULL;
    ring->sqes = NULL;
    ring->fd = ring->event_fd = -1;
    ring->state = RING_CLOSED;
}

static int map_queues(au_ring *ring, const struct au_params *params)
{
    size_t sq_end = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq_end = params->cq_off.cqes + params->cq_entries * sizeof(struct au_cqe);
    ring->ring_bytes = sq_end > cq_end ? sq_end : cq_end;
    ring->sqes_bytes = params->sq_entries * sizeof(struct au_sqe);
    ring->ring_memory = map(ring->fd, ring->ring_bytes, AU_OFF_SQ_RING);
    if (!ring->ring_memory)
        return -errno;
    ring->sqes = map(ring->fd, ring->sqes_bytes, AU_OFF_SQES);
    if (!ring->sqes)
        return -errno;
    uint8_t *memory = ring->ring_memory;
    ring->sq_head = (uint32_t *)(memory + params->sq_off.head);
    ring->sq_tail = (uint32_t *)(memory + params->sq_off.tail);
    ring->sq_flags = (uint32_t *)(memory + params->sq_off.flags);
    ring->cq_head = (uint32_t *)(memory + params->cq_off.head);
    ring->cq_tail = (uint32_t *)(memory + params->cq_off.tail);
    ring->cqes = (struct au_cqe *)(memory + params->cq_off.cqes);
    ring->sq_mask = params->sq_entries - 1;
    ring->cq_mask = params->cq_entries - 1;
    if (!(params->flags & AU_SETUP_NO_SQARRAY)) {
        uint32_t *array = (uint32_t *)(memory + params->sq_off.array);
        for (uint32_t i = 0; i < params->sq_entries; i++)
            array[i] = i;
    }
    return 0;
}

int au_ring_setup(au_ring *ring, unsigned sq_entries, unsigned cq_entries, unsigned flags)
{
    struct au_params params = {.flags = flags, .cq_entries = cq_entries};
    if (ring->state != RING_CLOSED)
        return -EBUSY;
    ring->fd = ring->event_fd = -1;
    ring->process = process_number;
    pthread_mutex_lock(&live_lock); /* no fork between the descriptor and its place in the list */
    int rc = au_kernel.setup(sq_entries, &params);
    if (rc < 0) {
        pthread_mutex_unlock(&live_lock);
        return rc;
    }
    ring->fd = rc;
    ring->setup_flags = params.flags;
    ring->features = params.features;
    ring->sq_entries = params.sq_entries;
    ring->cq_entries = params.cq_entries;
    rc = params.features & AU_FEAT_SINGLE_MMAP ? map_queues(ring, &params) : -ENOSYS;
    ring->guard_of = calloc(params.sq_entries, 1);
    if (rc == 0 && !ring->guard_of)
        rc = -ENOMEM;
    if (rc < 0) {
        let_go(ring);
    } else {
        ring->state = RING_DISABLED;
        ring->next_live = live_rings;
        live_rings = ring;
    }
    pthread_mutex_unlock(&live_lock);
    return rc;
}

int au_ring_enable(au_ring *ring)
{
    int rc = au_ring_check(ring);
    if (rc < 0 || ring->state == RING_ENABLED)
        return rc;
    if (ring->setup_flags & AU_SETUP_R_DISABLED)
        rc = au_kernel.do_register(ring->fd, AU_REGISTER_ENABLE_RINGS, NULL, 0);
    if (rc == 0) {
        ring->thread = this_thread();
        ring->state = RING_ENABLED;
    }
    return rc;
}

int au_ring_close(au_ring *ring)
{
    if (ring->process != process_number || ring->state == RING_CLOSED)
        return 0; /* a child's descriptors were closed by the fork handler */
    pthread_mutex_lock(&live_lock);
    for (au_ring **link = &live_rings; *link; link = &(*link)->next_live) {
        if (*link == ring) {
            *link = ring->next_live;
            break;
        }
    }
    let_go(ring);
    pthread_mutex_unlock(&live_lock);
    return 0;
}

int au_ring_register(au_ring *ring, unsigned opcode, void *argument, unsigned count)
{
    int rc = au_ring_check(ring);
    return rc < 0 ? rc : au_kernel.do_register(ring->fd, opcode, argument, count);
}

int au_ring_open_eventfd(au_ring *ring)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->event_fd >= 0)
        return -EBUSY;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    rc = au_kernel.do_register(ring->fd, AU_REGISTER_EVENTFD, &fd, 1);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    ring->event_fd = fd;
    return fd;
}

int au_ring_close_eventfd(au_ring *ring)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->event_fd < 0)
        return -ENXIO;
    rc = au_kernel.do_register(ring->fd, AU_UNREGISTER_EVENTFD, NULL, 0);
    close(ring->event_fd);
    ring->event_fd = -1;
    return rc;
}

/* ---- guarded descriptors ---------------------------------------------------------------------- */

static bool is_ring(int fd)
{
    char path[40], target[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target);
    return length == 21 && memcmp(target, "anon_inode:[io_uring]", 21) == 0;
}

/* Note what `fd` is now.  Returns 1 + the number of its guard. */
static int guard(au_ring *ring, int fd)
{
    for (uint32_t i = ring->guards_used; i-- > 0;)
        if (ring->guards[i].fd == fd)
            return (int)i + 1;
    if (ring->guards_used == AU_SLOTS_AT_ONCE)
        return AU_FULL;
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    /* A request on an io_uring never completes; its inode is one of those without a type. */
    if ((status.st_mode & S_IFMT) == 0 && is_ring(fd))
        return AU_RING_FD;
    ring->guards[ring->guards_used] = (struct guard){fd, status.st_dev, status.st_ino};
    return (int)++ring->guards_used;
}

static void forget_guards(au_ring *ring)
{
    if (ring->guards_used) {
        memset(ring->guard_of, 0, ring->sq_entries);
        ring->guards_used = 0;
    }
}

/* Take the descriptor away from every entry whose file is no longer what it was. */
static void verify_guards(au_ring *ring)
{
    for (uint32_t i = 0; i < ring->guards_used; i++) {
        struct stat status;
        const struct guard *g = &ring->guards[i];
        if (fstat(g->fd, &status) == 0 && status.st_dev == g->device && status.st_ino == g->inode)
            continue;
        for (uint32_t at = load(ring->sq_head); at != ring->filled; at++)
            if (ring->guard_of[at & ring->sq_mask] == i + 1)
                ring->sqes[at & ring->sq_mask].fd = -1;
    }
}

int au_ring_disarm(au_ring *ring, uint64_t user_data)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    for (uint32_t at = load(ring->sq_head); at != ring->filled; at++) {
        struct au_sqe *sqe = &ring->sqes[at & ring->sq_mask];
        if (sqe->user_data == user_data) {
            sqe->fd = -1;
            return 1;
        }
    }
    return 0;
}

/* ---- filling submission entries --------------------------------------------------------------- */

/* `how` is AU_SQE_* flags in the low byte, with AU_GUARD_FD where the file was named by number, and what
 * goes into ioprio (AU_RECVSEND_* ...) in the upper half.
 * On success the entry counts as filled: the caller writes the rest and must not fail any more. */
static int next_entry(au_ring *ring, uint64_t user_data, int opcode, int fd, unsigned how,
                      struct au_sqe **entry)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->filled - load(ring->sq_head) >= ring->sq_entries)
        return AU_FULL;
    int guarded = 0;
    if (how & AU_GUARD_FD) {
        guarded = guard(ring, fd);
        if (guarded < 0)
            return guarded;
    }
    uint32_t slot = ring->filled & ring->sq_mask;
    struct au_sqe *sqe = &ring->sqes[slot];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)opcode;
    sqe->flags = (uint8_t)(how & 0xff);
    sqe->ioprio = (uint16_t)(how >> 16);
    sqe->fd = fd;
    sqe->user_data = user_data;
    ring->guard_of[slot] = (uint8_t)guarded;
    ring->last_user_data = user_data;
    ring->filled++;
    *entry = sqe;
    return 0;
}

/* Is [start, start + length) inside `capacity` bytes?  No addition that could overflow. */
static bool inside(int64_t capacity, int64_t start, int64_t length)
{
    return start >= 0 && length >= 0 && start <= capacity && length <= capacity - start;
}

static uint32_t clamp(int64_t length)
{
    return (uint32_t)(length > AU_MAX_TRANSFER ? AU_MAX_TRANSFER : length);
}

int au_prepare(au_ring *ring, uint64_t user_data, int opcode, int fd, int64_t offset,
               uint64_t address, uint32_t length, uint32_t op_flags, unsigned how)
{
    struct au_sqe *sqe;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = address;
    sqe->len = length;
    sqe->op_flags = op_flags;
    return 0;
}

int au_prepare_memory(au_ring *ring, uint64_t user_data, int opcode, int fd, const void *memory,
                      int64_t capacity, int64_t start, int64_t length, int64_t offset,
                      uint32_t op_flags, unsigned how)
{
    struct au_sqe *sqe;
    if (!inside(capacity, start, length))
        return AU_BAD_LENGTH;
    if (offset < -1)
        return AU_BAD_OFFSET;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = (uint64_t)(uintptr_t)memory + (uint64_t)start;
    sqe->len = clamp(length);
    sqe->op_flags = op_flags;
    return 0;
}

int au_prepare_fixed(au_ring *ring, uint64_t user_data, int opcode, int fd, au_buffers *buffers,
                     uint32_t index, int64_t start, int64_t length, int64_t offset, unsigned how)
{
    struct au_sqe *sqe;
    if (buffers->ring != ring || index >= buffers->count)
        return AU_BAD_INDEX;
    if (!buffers->registered)
        return AU_CLOSED;
    if (!buffers->lent[index])
        return AU_NOT_LENT;
    if (!inside((int64_t)buffers->size, start, length))
        return AU_BAD_LENGTH;
    if (offset < -1)
        return AU_BAD_OFFSET;
    int rc = next_entry(ring, user_data, opcode, fd, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->addr = (uint64_t)(uintptr_t)(buffers->base + index * buffers->stride) + (uint64_t)start;
    sqe->len = clamp(length);
    sqe->buf_index = (uint16_t)index;
    return 0;
}

int au_prepare_select(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                      int64_t length, int64_t offset, uint32_t op_flags, unsigned how)
{
    struct au_sqe *sqe;
    if (group->ring != ring)
        return AU_BAD_INDEX;
    if (!group->registered)
        return AU_CLOSED;
    if (length < 0 || length > group->size)
        return AU_BAD_LENGTH;
    int rc = next_entry(ring, user_data, opcode, fd, how | AU_SQE_BUFFER_SELECT, &sqe);
    if (rc < 0)
        return rc;
    sqe->off = (uint64_t)offset;
    sqe->len = (uint32_t)length;
    sqe->op_flags = op_flags;
    sqe->buf_index = group->group_id;
    return 0;
}

/* ---- submitting and draining ------------------------------------------------------------------ */

unsigned au_ring_unsubmitted(au_ring *ring)
{
    return ring->process == process_number && ring->sqes ? ring->filled - load(ring->sq_head) : 0;
}

static void publish_group(au_group *group)
{
    group->tail = (uint16_t)(group->tail + group->unpublished);
    __atomic_store_n(&group->entries[0].reserved, group->tail, __ATOMIC_RELEASE);
    group->with_kernel += group->unpublished;
    group->published += group->unpublished;
    group->advances++;
    group->unpublished = 0;
}

static void publish_groups(au_ring *ring)
{
    while (ring->unpublished) {
        au_group *group = ring->unpublished;
        ring->unpublished = group->next_unpublished;
        group->queued = false;
        if (group->registered && group->unpublished)
            publish_group(group);
    }
}

static bool kernel_wants_us(const au_ring *ring)
{
    return (load(ring->sq_flags) & (AU_SQ_CQ_OVERFLOW | AU_SQ_TASKRUN)) != 0;
}

/* Submit what is filled and let the kernel run its deferred work; until all is taken or it refuses. */
static int enter(au_ring *ring, unsigned min_complete, unsigned flags, const void *argument, size_t size)
{
    publish_groups(ring);
    verify_guards(ring);
    store(ring->sq_tail, ring->filled);
    for (int stalled = 0, interrupted = 0;;) {
        unsigned pending = ring->filled - load(ring->sq_head);
        if (load(ring->sq_flags) & AU_SQ_CQ_OVERFLOW)
            ring->overflow_flushes++;
        ring->enters++;
        int rc = au_kernel.enter(ring->fd, pending, min_complete, flags | AU_ENTER_GETEVENTS, argument, size);
        if (rc == -EINTR && min_complete == 0 && ++interrupted < 64)
            continue;
        unsigned taken = pending - (ring->filled - load(ring->sq_head));
        ring->submitted += taken;
        if (taken == pending)
            forget_guards(ring);
        if (rc < 0) {
            ring->submit_errors++;
            return rc;
        }
        if (taken == pending)
            return 0;
        if (taken)
            stalled = 0;
        else if (++stalled == 3)
            return -EAGAIN;
    }
}

static uint32_t drain(au_ring *ring)
{
    uint32_t head = *ring->cq_head, tail = load(ring->cq_tail), before = ring->ready;
    for (; head != tail && ring->ready < AU_EVENTS_MAX; head++, ring->ready++) {
        const struct au_cqe *cqe = &ring->cqes[head & ring->cq_mask];
        int64_t *event = &ring->events[ring->ready * 3];
        event[0] = (int64_t)cqe->user_data;
        event[1] = cqe->res;
        event[2] = cqe->flags;
    }
    store(ring->cq_head, head);
    ring->completed += ring->ready - before;
    return ring->ready - before;
}

static bool more_waits(const au_ring *ring)
{
    return *ring->cq_head != load(ring->cq_tail) || kernel_wants_us(ring) ||
           ring->filled != load(ring->sq_head);
}

/* One turn: publish, submit, drain, empty the eventfd, look again.  Returns how many completions are
 * in `events`, with AU_AGAIN set when the caller should come back without waiting for a signal.
 * Completions outrank an error: the error is met again on the next turn. */
int au_ring_turn(au_ring *ring, int woken)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->state != RING_ENABLED)
        return AU_DISABLED;
    ring->ready = 0;
    ring->wakeups += woken != 0;
    publish_groups(ring);
    bool signalled = woken;
    for (int round = 0; round < AU_ROUNDS_MAX; round++) {
        rc = 0;
        if (ring->filled != load(ring->sq_head) || kernel_wants_us(ring))
            rc = enter(ring, 0, 0, NULL, 0);
        signalled |= drain(ring) != 0;
        if (signalled && ring->event_fd >= 0) {
            uint64_t count;
            ssize_t ignored = read(ring->event_fd, &count, sizeof count);
            (void)ignored; /* EAGAIN: nothing had been signalled */
            signalled = false;
        }
        if (rc < 0)
            return ring->ready ? (int)ring->ready | AU_AGAIN : rc;
        if (!more_waits(ring))
            return (int)ring->ready;
        if (ring->ready == AU_EVENTS_MAX)
            break;
    }
    return (int)ring->ready | AU_AGAIN;
}

/* Submit, then block until `min_complete` completions are there or the time is over (-ETIME). */
int au_ring_wait(au_ring *ring, unsigned min_complete, int64_t timeout_ns)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->state != RING_ENABLED)
        return AU_DISABLED;
    if (load(ring->cq_tail) - *ring->cq_head >= min_complete && ring->filled == load(ring->sq_head))
        return 0;
    struct au_timespec time = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    struct au_getevents_arg argument = {.timespec = (uint64_t)(uintptr_t)&time};
    if (timeout_ns < 0)
        rc = enter(ring, min_complete, 0, NULL, 0);
    else
        rc = enter(ring, min_complete, AU_ENTER_EXT_ARG, &argument, sizeof argument);
    /* An enter() that submitted something says so, even if a signal or the timeout ended its wait. */
    if (rc == 0 && load(ring->cq_tail) - *ring->cq_head < min_complete)
        return -EINTR;
    return rc;
}

/* ---- registered buffers ----------------------------------------------------------------------- */

void au_buffers_init(au_buffers *buffers, au_ring *ring, void *base, uint64_t size, uint64_t stride, uint32_t count)
{
    buffers->ring = ring;
    buffers->base = base;
    buffers->size = size;
    buffers->stride = stride;
    buffers->count = count;
}

int au_buffers_register(au_buffers *buffers)
{
    struct iovec *vectors = calloc(buffers->count, sizeof *vectors);
    if (!vectors)
        return -ENOMEM;
    for (uint32_t i = 0; i < buffers->count; i++)
        vectors[i] = (struct iovec){buffers->base + i * buffers->stride, buffers->size};
    int rc = au_ring_register(buffers->ring, AU_REGISTER_BUFFERS, vectors, buffers->count);
    free(vectors);
    buffers->registered = rc == 0;
    return rc;
}

int au_buffers_unregister(au_buffers *buffers)
{
    if (!buffers->registered)
        return 0;
    int rc = au_ring_register(buffers->ring, AU_UNREGISTER_BUFFERS, NULL, 0);
    if (rc == 0 || rc == AU_CLOSED)
        buffers->registered = 0;
    return rc == AU_CLOSED ? 0 : rc;
}

int au_buffers_lend(au_buffers *buffers, uint32_t index)
{
    if (index >= buffers->count)
        return AU_BAD_INDEX;
    if (buffers->lent[index])
        return AU_NOT_LENT;
    buffers->lent[index] = 1;
    return 0;
}

int au_buffers_give_back(au_buffers *buffers, uint32_t index)
{
    if (index >= buffers->count)
        return AU_BAD_INDEX;
    if (!buffers->lent[index])
        return AU_NOT_LENT;
    buffers->lent[index] = 0;
    return 0;
}

/* ---- provided buffers ------------------------------------------------------------------------- */

int au_group_init(au_group *group, au_ring *ring, void *base, uint32_t size, uint32_t count, uint16_t group_id)
{
    size_t bytes = count * sizeof(struct au_buf);
    void *entries = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (entries == MAP_FAILED)
        return -errno;
    madvise(entries, bytes, MADV_DONTFORK);
    group->ring = ring;
    group->base = base;
    group->size = size;
    group->count = count;
    group->group_id = group_id;
    group->entries = entries;
    group->entries_bytes = bytes;
    return 0;
}

/* Write a returned buffer behind the tail: 14 bytes, never 16, see struct au_buf. */
static void add_buffer(au_group *group, uint32_t buffer_id)
{
    uint32_t position = (uint16_t)(group->tail + group->unpublished) & (group->count - 1);
    struct au_buf *entry = &group->entries[position];
    entry->addr = (uint64_t)(uintptr_t)(group->base + (uint64_t)buffer_id * group->size);
    entry->len = group->size;
    entry->bid = (uint16_t)buffer_id;
    group->unpublished++;
}

int au_group_register(au_group *group)
{
    struct au_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)group->entries,
                             .ring_entries = group->count, .bgid = group->group_id};
    int rc = au_ring_register(group->ring, AU_REGISTER_PBUF_RING, &reg, 1);
    if (rc < 0)
        return rc;
    group->registered = 1;
    for (uint32_t i = 0; i < group->count; i++)
        add_buffer(group, i);
    publish_group(group);
    return 0;
}

int au_group_unregister(au_group *group)
{
    if (!group->registered)
        return 0;
    struct au_buf_reg reg = {.bgid = group->group_id};
    int rc = au_ring_register(group->ring, AU_UNREGISTER_PBUF_RING, &reg, 1);
    if (rc < 0 && rc != AU_CLOSED)
        return rc;
    group->registered = 0;
    for (au_group **link = &group->ring->unpublished; *link; link = &(*link)->next_unpublished) {
        if (*link == group) {
            *link = group->next_unpublished;
            break;
        }
    }
    return 0;
}

int au_group_take(au_group *group, uint32_t buffer_id)
{
    if (buffer_id >= group->count)
        return AU_BAD_INDEX;
    if (group->is_lent[buffer_id] || group->with_kernel == 0)
        return AU_NOT_LENT;
    group->is_lent[buffer_id] = 1;
    group->with_kernel--;
    group->lent++;
    if (group->lent > group->high_water)
        group->high_water = group->lent;
    return 0;
}

/* Returns 1 if the buffer now waits to be published, 0 if the kernel no longer has the group. */
int au_group_release(au_group *group, uint32_t buffer_id)
{
    if (buffer_id >= group->count)
        return AU_BAD_INDEX;
    int rc = group->registered ? au_ring_check(group->ring) : 0;
    if (rc < 0 && rc != AU_CLOSED)
        return rc;
    if (!group->is_lent[buffer_id])
        return AU_NOT_LENT;
    group->is_lent[buffer_id] = 0;
    group->lent--;
    if (!group->registered || rc == AU_CLOSED)
        return 0;
    add_buffer(group, buffer_id);
    if (!group->queued) {
        group->queued = true;
        group->next_unpublished = group->ring->unpublished;
        group->ring->unpublished = group;
    }
    return 1;
}

/* How far the kernel has read, a free-running 16-bit count.  Since Linux 6.8. */
int au_group_head(au_group *group)
{
    struct au_buf_status status = {.buf_group = group->group_id};
    int rc = au_ring_register(group->ring, AU_REGISTER_PBUF_STATUS, &status, 1);
    return rc < 0 ? rc : (int)status.head;
}

/* Unmap the ring of a group that the kernel no longer has.  Any thread may come here (the garbage collector
 * does), so the ring's list is left alone: an unregistered group is not in it, a closed ring does not look. */
void au_group_close(au_group *group)
{
    if (!group->entries || (group->registered && group->ring->state != RING_CLOSED))
        return;
    if (group->ring->process == process_number)
        munmap(group->entries, group->entries_bytes); /* a child never had this mapping */
    group->entries = NULL;
    group->registered = 0;
}
