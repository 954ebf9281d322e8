/* Turns: submitting, draining, and looking again. */
#include "uring.h"

unsigned au_ring_unsubmitted(au_ring *ring)
{
    return ring->process == process_number && ring->sqes ? ring->filled - load(ring->sq_head) : 0;
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
    uint32_t head = *ring->cq_head, tail = load(ring->cq_tail);
    for (; head != tail && ring->ready < AU_EVENTS_MAX; head++) {
        const struct au_cqe *cqe = &ring->cqes[head & ring->cq_mask];
        uint64_t user_data = cqe->user_data;
        au_sender *sender = user_data & SENDER_TAG ? sender_named(ring, user_data) : NULL;
        if (sender) {
            if (!send_ended(ring, sender, cqe->res))
                continue;
            user_data = sender->number;
        }
        int64_t *event = &ring->events[ring->ready++ * 3];
        event[0] = (int64_t)user_data;
        event[1] = cqe->res;
        event[2] = cqe->flags;
    }
    uint32_t drained = head - *ring->cq_head;
    store(ring->cq_head, head);
    ring->completed += drained;
    return drained;
}

static bool more_waits(const au_ring *ring)
{
    return *ring->cq_head != load(ring->cq_tail) || kernel_wants_us(ring) ||
           ring->senders || ring->filled != load(ring->sq_head);
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
        if (ring->senders)
            fill_senders(ring);
        if (ring->filled != load(ring->sq_head) || kernel_wants_us(ring))
            rc = enter(ring, 0, 0, NULL, 0);
        signalled |= drain(ring) != 0;
        publish_groups(ring); /* what senders gave back: the loop may sleep after this */
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
