/* Turns: submitting, draining, and looking again. */
#include "uring.h"

unsigned au_ring_unsubmitted(au_ring *ring)
{
    return ring->process == process_number && ring->sqes ? ring->filled - load(ring->sq_head) : 0;
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
        if (taken) {
            stalled = 0;
            end_cut_chain(ring);
        }
        else if (++stalled == 3)
            return -EAGAIN;
    }
}

/* Take the entry that was filled last back, unless the kernel has it; returns whether there was one.  The kernel reads
 * the queue within enter() only, so what it has not taken by then is ours. */
int au_ring_withdraw(au_ring *ring, uint64_t *user_data)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->filled == load(ring->sq_head))
        return 0;
    *user_data = ring->sqes[--ring->filled & ring->sq_mask].user_data;
    store(ring->sq_tail, ring->filled);
    return 1;
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
        if (cqe->flags & AU_CQE_F_BUFFER && cqe->res > 0) {
            au_group *group = group_of(ring, user_data);
            if (group && group->bundled) {
                ring->ready += take_bundle(group, event) - 1;
            } else if (group && group->incremental) {
                take_part_for(group, event);
            } else if (group && au_group_take(group, cqe->flags >> AU_CQE_BUFFER_SHIFT) == 0) {
                event[2] |= AU_CQE_TAKEN;
            }
        }
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

static void empty_eventfd(au_ring *ring)
{
    uint64_t count;
    if (ring->event_fd >= 0) {
        ssize_t ignored = read(ring->event_fd, &count, sizeof count);
        (void)ignored; /* EAGAIN: nothing had been signalled */
    }
}

/* One turn: publish, submit, drain, empty the eventfd, look again.  Returns how many completions are
 * in `events`, with AU_AGAIN set when the caller should come back without waiting for a signal.
 * Completions outrank an error: the error is met again on the next turn.
 *
 * Our eventfd is silent meanwhile: what completes while we submit would signal it, and would have to be read off
 * again.  Measured on 6.18, both profiles, both loops: the read() is gone from every turn that finds completions.
 * System calls per completion, 64 at a time: NOPs, reads and echo 0.062 -> 0.047 (reads by number 0.094 -> 0.078);
 * CPU time of one awaited NOP at a time 0.87 to 0.91 of what it was, echo on one connection 0.92 to 0.95, with 64 in
 * flight 0.98 to 1.01: the noise of the machine. */
int au_ring_turn(au_ring *ring, int woken)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->state != AU_RING_ENABLED)
        return AU_DISABLED;
    ring->ready = 0;
    ring->given_away = 0;
    ring->wakeups += woken != 0;
    publish_groups(ring);
    bool silent = ring->event_fd >= 0 && ring->cq_flags && !is_silent(ring); /* a silence of the caller's stays */
    if (silent)
        silence(ring);
    bool signalled = woken || anything_here(ring); /* nothing from here on */
    for (int round = 0; round < AU_ROUNDS_MAX; round++) {
        rc = 0;
        if (ring->senders)
            fill_senders(ring);
        if (ring->filled != load(ring->sq_head) || kernel_wants_us(ring))
            rc = enter(ring, 0, 0, NULL, 0);
        signalled |= drain(ring) != 0 && !silent;
        publish_groups(ring); /* what senders gave back: the loop may sleep after this */
        if (signalled)
            empty_eventfd(ring);
        signalled = false;
        if (rc < 0)
            break;
        if (silent && !more_waits(ring)) {
            end_silence(ring);
            silent = false;
        }
        if (!more_waits(ring))
            return (int)ring->ready;
        if (ring->ready >= AU_EVENTS_MAX)
            break;
    }
    if (silent)
        end_silence(ring);
    return rc < 0 && !ring->ready ? rc : (int)ring->ready | AU_AGAIN;
}

/* Submit, and show in `events` what has completed; it stays in the queue until au_ring_advance().  For rings
 * without senders, whose completions only au_ring_turn() knows to handle. */
int au_ring_peek(au_ring *ring)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->state != AU_RING_ENABLED)
        return AU_DISABLED;
    ring->ready = 0;
    publish_groups(ring);
    if (ring->filled != load(ring->sq_head) || kernel_wants_us(ring))
        rc = enter(ring, 0, 0, NULL, 0);
    for (uint32_t at = *ring->cq_head, tail = load(ring->cq_tail); at != tail && ring->ready < AU_EVENTS_MAX; at++) {
        const struct au_cqe *cqe = &ring->cqes[at & ring->cq_mask];
        int64_t *event = &ring->events[ring->ready++ * 3];
        event[0] = (int64_t)cqe->user_data;
        event[1] = cqe->res;
        event[2] = cqe->flags;
    }
    ring->peeked = ring->completed + ring->ready;
    return ring->ready ? (int)ring->ready : rc;
}

/* How many completions have been peeked at and not been consumed. */
uint32_t au_ring_peeked(const au_ring *ring)
{
    return ring->peeked > ring->completed ? (uint32_t)(ring->peeked - ring->completed) : 0;
}

/* Consume completions: the kernel may write over them.  Only what was seen can be, or its buffers would be lost. */
int au_ring_advance(au_ring *ring, uint32_t count)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (count > au_ring_peeked(ring))
        return AU_TOO_MANY;
    store(ring->cq_head, *ring->cq_head + count);
    ring->completed += count;
    return 0;
}

static uint32_t ready_in(const au_ring *ring) { return load(ring->cq_tail) - *ring->cq_head; }

/* Submit, then block; returns how many completions are there, which may be fewer than asked for: an enter() that
 * submitted something, or found anything, does not say what ended its wait. */
static int wait_with(au_ring *ring, unsigned min_complete, unsigned flags, const void *argument, size_t size)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (ring->state != AU_RING_ENABLED)
        return AU_DISABLED;
    if (ready_in(ring) < min_complete || ring->filled != load(ring->sq_head))
        rc = enter(ring, min_complete, flags, argument, size);
    return rc < 0 ? rc : (int)ready_in(ring);
}

/* Wait by a registered argument, named by its offset: EXT_ARG_REG alone would be ignored, and wait for ever. */
int au_ring_wait_slot(au_ring *ring, unsigned min_complete, uint32_t slot, unsigned flags)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    if (slot >= ring->wait_slots)
        return AU_BAD_INDEX;
    const void *offset = (const void *)(slot * sizeof(struct au_reg_wait)); /* in place of an address */
    flags = (flags & AU_ENTER_ABS_TIMER) | AU_ENTER_EXT_ARG | AU_ENTER_EXT_ARG_REG;
    return wait_with(ring, min_complete, flags, offset, sizeof(struct au_reg_wait));
}

/* Submit, then block until `min_complete` completions are there, or `time_ns` is over (negative: no limit), or one
 * completion is there after `min_wait_usec`.  `flags` may be AU_ENTER_ABS_TIMER. */
int au_ring_wait(au_ring *ring, unsigned min_complete, int64_t time_ns, uint32_t min_wait_usec, unsigned flags)
{
    if (time_ns < 0 && !min_wait_usec)
        return wait_with(ring, min_complete, 0, NULL, 0);
    if (ring->wait_slots) {
        int rc = au_ring_set_wait(ring, 0, time_ns, min_wait_usec);
        return rc < 0 ? rc : au_ring_wait_slot(ring, min_complete, 0, flags);
    }
    struct au_timespec time = {time_ns / 1000000000, time_ns % 1000000000};
    struct au_getevents_arg argument = {.min_wait_usec = min_wait_usec,
                                        .timespec = time_ns < 0 ? 0 : (uint64_t)(uintptr_t)&time};
    flags = (flags & AU_ENTER_ABS_TIMER) | AU_ENTER_EXT_ARG;
    return wait_with(ring, min_complete, flags, &argument, sizeof argument);
}
