/* A ring: its process and thread, its mappings, its registrations. */
#include "uring.h"

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
        close_eventfds(ring);
        region_in_child(ring);
        ring->fd = -1;
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
    if (ring->state == AU_RING_ENABLED && ring->thread != this_thread())
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
    region_let_go(ring); /* its mapping would keep the ring's file open, and so the requests running */
    if (ring->ring_memory)
        munmap(ring->ring_memory, ring->ring_bytes);
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_bytes);
    if (ring->fd >= 0)
        close(ring->fd);
    close_eventfds(ring);
    free(ring->guard_of);
    free(ring->sender_table);
    free(ring->group_table);
    ring->group_table = NULL;
    ring->group_slots = 0;
    free(ring->slots);
    ring->slots = NULL;
    ring->slot_count = 0;
    ring->guard_of = NULL;
    ring->sender_table = NULL;
    ring->sender_slots = 0;
    ring->senders = NULL;
    ring->ring_memory = NULL;
    ring->sqes = NULL;
    ring->fd = -1;
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
    ring->cq_flags = params->cq_off.flags ? (uint32_t *)(memory + params->cq_off.flags) : NULL; /* since Linux 5.8 */
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
    ring->fd = ring->event_fd = ring->signal_fd = -1;
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
    if (rc < 0 || ring->state == AU_RING_ENABLED)
        return rc;
    if (ring->setup_flags & AU_SETUP_R_DISABLED)
        rc = au_kernel.do_register(ring->fd, AU_REGISTER_ENABLE_RINGS, NULL, 0);
    if (rc == 0) {
        ring->thread = this_thread();
        ring->state = AU_RING_ENABLED;
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

/* A descriptor of the ring's own file, for one message to it; any thread may ask for it, and closes it.  With the lock,
 * or the ring might be closed in between and its number be another file's. */
int au_ring_duplicate(au_ring *ring)
{
    pthread_mutex_lock(&live_lock);
    int rc = ring->process != process_number ? AU_FORKED
             : ring->state == RING_CLOSED    ? AU_CLOSED
                                             : fcntl(ring->fd, F_DUPFD_CLOEXEC, 0);
    if (rc == -1)
        rc = -errno;
    pthread_mutex_unlock(&live_lock);
    return rc;
}

int au_ring_register(au_ring *ring, unsigned opcode, void *argument, unsigned count)
{
    int rc = au_ring_check(ring);
    if (rc == 0)
        rc = au_kernel.do_register(ring->fd, opcode, argument, count);
    return rc == -EACCES && ring->restricted ? AU_FORBIDDEN : rc;
}

/* Only what is listed is allowed once the ring is enabled.  Since Linux 5.10. */
int au_ring_restrict(au_ring *ring, void *restrictions, unsigned count)
{
    int rc = au_ring_register(ring, AU_REGISTER_RESTRICTIONS, restrictions, count);
    ring->restricted |= rc == 0;
    return rc;
}
