/* The eventfd that the kernel counts up when there is something to do: ours or the caller's, and silencing it.
 *
 * Ours (`event_fd`) is emptied by every turn that was signalled.  The caller's is the caller's to read: we keep a
 * duplicate (`signal_fd`) only to signal it ourselves when silence ends.  The kernel has a reference of its own, so
 * either number may be closed at any time.
 */
#include "uring.h"

#include <poll.h>

static void close_eventfds(au_ring *ring)
{
    if (ring->signal_fd >= 0)
        close(ring->signal_fd); /* event_fd is the same, or there is none */
    ring->event_fd = ring->signal_fd = -1;
}

/* A ring has one eventfd: give the kernel `fd`.  Takes `fd` over on success. */
static int register_eventfd(au_ring *ring, int fd)
{
    int rc = au_ring_register(ring, AU_REGISTER_EVENTFD, &fd, 1);
    if (rc < 0)
        close(fd);
    else
        ring->signal_fd = fd;
    return rc;
}

int au_ring_open_eventfd(au_ring *ring)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->signal_fd >= 0)
        return -EBUSY;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    rc = register_eventfd(ring, fd);
    if (rc < 0)
        return rc;
    ring->event_fd = fd;
    return fd;
}

int au_ring_use_eventfd(au_ring *ring, int fd)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->signal_fd >= 0)
        return -EBUSY;
    int duplicate = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (duplicate < 0)
        return -errno;
    rc = register_eventfd(ring, duplicate);
    return rc < 0 ? rc : fd;
}

int au_ring_close_eventfd(au_ring *ring)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->signal_fd < 0)
        return -ENXIO;
    rc = au_ring_register(ring, AU_UNREGISTER_EVENTFD, NULL, 0);
    if (rc == AU_FORBIDDEN)
        return rc; /* the kernel goes on signalling it */
    close_eventfds(ring);
    return rc;
}

/* Whether something is here that the eventfd should have told of. */
static bool anything_here(const au_ring *ring)
{
    return *ring->cq_head != load(ring->cq_tail) || kernel_wants_us(ring);
}

static bool is_silent(const au_ring *ring) { return (load(ring->cq_flags) & AU_CQ_EVENTFD_DISABLED) != 0; }

static void silence(au_ring *ring) { store(ring->cq_flags, load(ring->cq_flags) | AU_CQ_EVENTFD_DISABLED); }

/* The kernel signals again what comes from here on; what came in silence is the caller's to look for.  The barrier
 * keeps the looking behind the clearing: the kernel posts and then reads the flag, we clear and then read the queue,
 * and one of the two must see the other (KERNEL.md C1.3). */
static void end_silence(au_ring *ring)
{
    store(ring->cq_flags, load(ring->cq_flags) & ~AU_CQ_EVENTFD_DISABLED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Silence the eventfd, or end that: then, if anything came meanwhile, signal it as the kernel would have. */
int au_ring_silence(au_ring *ring, int silent)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (!ring->cq_flags)
        return -ENOSYS;
    if (silent) {
        silence(ring);
        return 0;
    }
    if (!is_silent(ring))
        return 0;
    end_silence(ring);
    struct pollfd poll_fd = {.fd = ring->signal_fd, .events = POLLIN};
    if (ring->signal_fd < 0 || !anything_here(ring) || poll(&poll_fd, 1, 0) == 1)
        return 0; /* nobody is to be told, there is nothing to tell, or it has been told */
    uint64_t one = 1;
    return write(ring->signal_fd, &one, sizeof one) < 0 ? -errno : 0; /* it was 0: this cannot block */
}

int au_ring_silenced(au_ring *ring)
{
    int rc = au_ring_check(ring);
    return rc < 0 ? rc : ring->cq_flags && is_silent(ring);
}
