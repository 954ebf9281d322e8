/* Senders: the sending half of a connection, from what was written to one request at a time.
 *
 * What is written in one turn of the loop is sent by one request (a plain send, or one with a vector); the
 * next request is filled when the last has ended, so the order of the bytes is that of the writes.  All of
 * that happens here, within au_ring_turn(): Python hears of a sender only when it asked to (`watched`), when
 * its caller's memory is free again, and when it failed.
 *
 * Ownership.  A part is a provided buffer whose lease was handed over (it stays lent in the group's books
 * until its bytes are sent, and then goes back to the kernel), a copy of a few bytes, or memory that the caller
 * keeps until `memory_done` has counted it.  The parts of the request in flight stay in the queue until its
 * final completion.  The entry is filled in the very turn that submits it, from a descriptor that the connection
 * owns, so it needs no guard (KERNEL.md E12).
 */
#include "uring.h"

/* A sender's requests are known by its place in the ring's table, and by its number, so that a completion of
 * anybody else's is not taken for one of them. */
#define SENDER_TAG (1ull << 63)
#define SENDER_SLOTS_MAX (1u << 24)

enum { SEND_FLAGS = 0x4000 | 0x100 }; /* MSG_NOSIGNAL, MSG_WAITALL */

static struct au_part *part_of(au_sender *sender, uint32_t at)
{
    return &sender->parts[(sender->first + at) & (sender->capacity - 1)];
}

static void queue_sender(au_sender *sender)
{
    if (sender->queued)
        return;
    sender->queued = true;
    sender->next = NULL;
    if (sender->ring->senders)
        sender->ring->last_sender->next = sender;
    else
        sender->ring->senders = sender;
    sender->ring->last_sender = sender;
}

/* Give the sender a place in the ring's table. */
int au_sender_init(au_sender *sender, au_ring *ring, int fd, uint64_t number)
{
    int rc = au_ring_check(ring);
    if (rc < 0)
        return rc;
    uint32_t slot = 0;
    while (slot < ring->sender_slots && ring->sender_table[slot])
        slot++;
    if (slot == ring->sender_slots) {
        uint32_t slots = slot ? 2 * slot : 64;
        if (slots > SENDER_SLOTS_MAX)
            return -ENOMEM;
        au_sender **table = realloc(ring->sender_table, slots * sizeof *table);
        if (!table)
            return -ENOMEM;
        memset(table + slot, 0, (slots - slot) * sizeof *table);
        ring->sender_table = table;
        ring->sender_slots = slots;
    }
    ring->sender_table[slot] = sender;
    sender->ring = ring;
    sender->fd = fd;
    sender->high_water = AU_HIGH_WATER;
    sender->number = number;
    sender->name = SENDER_TAG | (number << 24 & ~SENDER_TAG) | slot;
    return 0;
}

/* The sender whose request has this name, or NULL. */
static au_sender *sender_named(au_ring *ring, uint64_t name)
{
    uint32_t slot = (uint32_t)(name & (SENDER_SLOTS_MAX - 1));
    au_sender *sender = slot < ring->sender_slots ? ring->sender_table[slot] : NULL;
    return sender && sender->name == name && sender->in_flight ? sender : NULL;
}

/* Returns 1 where more is pending now than the high mark, else 0. */
static int add_part(au_sender *sender, struct au_part part)
{
    int rc = au_ring_check(sender->ring);
    if (rc < 0)
        return rc;
    if (sender->failure)
        return sender->failure;
    if (sender->count == sender->capacity) {
        uint32_t capacity = sender->capacity ? 2 * sender->capacity : 1;
        struct au_part *parts = calloc(capacity, sizeof *parts);
        if (!parts)
            return -ENOMEM;
        for (uint32_t i = 0; i < sender->count; i++)
            parts[i] = *part_of(sender, i);
        free(sender->parts);
        sender->parts = parts;
        sender->capacity = capacity;
        sender->first = 0;
    }
    *part_of(sender, sender->count++) = part;
    sender->pending += part.length;
    sender->crowded = sender->held || sender->pending > sender->high_water;
    if (!sender->in_flight)
        queue_sender(sender);
    return sender->crowded;
}

/* `part` as for au_group_release(). */
int au_sender_add_buffer(au_sender *sender, au_group *group, uint64_t part, uint32_t length)
{
    uint32_t buffer_id = part & AU_BUFFER_ID_MASK;
    uint64_t begin = part >> AU_BUFFER_ID_BITS;
    if (group->ring != sender->ring || buffer_id >= group->count || (begin && !group->incremental))
        return AU_BAD_INDEX;
    if (group->incremental ? !part_is_lent(group, buffer_id, begin, length) : group->owner[buffer_id] != LENT)
        return AU_NOT_LENT;
    if (length == 0 || length > group->size)
        return AU_BAD_LENGTH;
    uint8_t *start = group->base + (uint64_t)buffer_id * group->size + begin;
    return add_part(sender, (struct au_part){start, length, group, buffer_id, NULL});
}

int au_sender_add_memory(au_sender *sender, const void *memory, int64_t length)
{
    if (length <= 0)
        return AU_BAD_LENGTH;
    int rc = add_part(sender, (struct au_part){(uint8_t *)(uintptr_t)memory, (uint64_t)length, NULL, 0, NULL});
    sender->memory_added += rc >= 0;
    return rc;
}

/* A copy costs less than to tell the caller when its memory is free; nothing is queued where there is no memory. */
int au_sender_add_copy(au_sender *sender, const char *bytes, uint64_t length)
{
    if (length == 0 || length > AU_COPY_MAX)
        return AU_BAD_LENGTH;
    uint8_t *copy = malloc(length);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, bytes, length);
    int rc = add_part(sender, (struct au_part){copy, length, NULL, 0, copy});
    if (rc < 0)
        free(copy);
    return rc;
}

/* The kernel is done with the first part. */
static void drop_first(au_sender *sender)
{
    struct au_part *part = part_of(sender, 0);
    sender->pending -= part->length;
    sender->taken += part->length;
    if (part->group)
        au_group_release(part->group, part->buffer_id);
    else if (part->copy)
        free(part->copy);
    else
        sender->memory_done++;
    sender->first = (sender->first + 1) & (sender->capacity - 1);
    sender->count--;
}

/* Forget what is queued behind the request in flight, and have that cancelled; `failure` is what every later
 * write gets.  Returns whether a request is in flight: then an event follows when it has ended. */
int au_sender_drop(au_sender *sender, int failure)
{
    int rc = au_ring_check(sender->ring);
    if (rc < 0 && rc != AU_CLOSED)
        return rc;
    if (!sender->failure)
        sender->failure = failure;
    sender->crowded = 1;
    if (!sender->in_flight) {
        while (sender->count)
            drop_first(sender);
    } else if (rc == 0) {
        sender->cancel_due = true;
        queue_sender(sender);
    }
    return sender->in_flight != 0;
}

static void free_memory(au_sender *sender)
{
    for (uint32_t i = 0; i < sender->count; i++)
        free(part_of(sender, i)->copy);
    free(sender->parts);
    free(sender->batch);
    sender->parts = NULL;
    sender->batch = NULL;
    sender->capacity = sender->count = 0;
}

/* Leave the ring's table, and free what the sender allocated; not while the kernel may read it.  Any thread may
 * come here (the garbage collector does), but only the ring's may touch its lists: from another one the few
 * bytes of an open ring's sender are left behind. */
void au_sender_close(au_sender *sender)
{
    int rc = sender->ring && !sender->in_flight ? au_ring_check(sender->ring) : AU_WRONG_THREAD;
    if (rc == AU_CLOSED)
        free_memory(sender);
    if (rc < 0)
        return;
    au_sender *before = NULL;
    for (au_sender **link = &sender->ring->senders; *link; before = *link, link = &before->next) {
        if (*link == sender) {
            *link = sender->next;
            if (!sender->next)
                sender->ring->last_sender = before;
            break;
        }
    }
    uint32_t slot = (uint32_t)(sender->name & (SENDER_SLOTS_MAX - 1));
    if (slot < sender->ring->sender_slots && sender->ring->sender_table[slot] == sender)
        sender->ring->sender_table[slot] = NULL;
    sender->queued = false;
    free_memory(sender);
}

static void fill_send(au_sender *sender, struct au_sqe *sqe)
{
    sqe->op_flags = SEND_FLAGS;
    if (sender->count > 1 && !sender->batch)
        sender->batch = malloc(sizeof *sender->batch);
    if (sender->count == 1 || !sender->batch) { /* without memory they are sent one by one */
        sqe->addr = (uint64_t)(uintptr_t)part_of(sender, 0)->start;
        sqe->len = clamp((int64_t)part_of(sender, 0)->length);
        return;
    }
    uint32_t count = sender->count < AU_VECTOR_MAX ? sender->count : AU_VECTOR_MAX;
    for (uint32_t i = 0; i < count; i++)
        sender->batch->vector[i] = (struct iovec){part_of(sender, i)->start, part_of(sender, i)->length};
    sender->batch->message = (struct msghdr){.msg_iov = sender->batch->vector, .msg_iovlen = count};
    sqe->opcode = AU_OP_SENDMSG;
    sqe->addr = (uint64_t)(uintptr_t)&sender->batch->message;
    sqe->len = 1;
}

/* Fill one request for each sender that has something new; those for which there is no room stay queued. */
static void fill_senders(au_ring *ring)
{
    while (ring->senders) {
        au_sender *sender = ring->senders;
        bool cancel = sender->in_flight && sender->cancel_due;
        if (cancel || (!sender->in_flight && sender->count)) {
            struct au_sqe *sqe;
            if (next_entry(ring, cancel ? 0 : sender->name, cancel ? AU_OP_ASYNC_CANCEL : AU_OP_SEND,
                           cancel ? -1 : sender->fd, 0, &sqe) < 0)
                return;
            if (cancel) {
                sqe->addr = sender->name;
                sender->cancel_due = false;
            } else {
                sender->in_flight = 1;
                ring->sends_in_flight++;
                fill_send(sender, sqe);
            }
        }
        ring->senders = sender->next;
        sender->queued = false;
    }
}

/* The request in flight has ended.  Returns whether Python is to hear of it. */
static bool send_ended(au_ring *ring, au_sender *sender, int32_t result)
{
    sender->in_flight = 0;
    ring->sends_in_flight--;
    uint64_t memory_done = sender->memory_done;
    for (uint64_t left = result > 0 ? (uint64_t)result : 0; left && sender->count;) {
        struct au_part *part = part_of(sender, 0);
        if (left < part->length) {
            part->start += left;
            part->length -= left;
            sender->pending -= left;
            sender->taken += left;
            break;
        }
        left -= part->length;
        drop_first(sender);
    }
    if (result <= 0 && result != -EAGAIN && result != -EINTR && !sender->failure)
        sender->failure = result ? result : -EPIPE;
    sender->crowded = sender->failure || sender->held || sender->pending > sender->high_water;
    if (sender->failure) {
        while (sender->count)
            drop_first(sender);
        return true;
    }
    if (sender->count)
        queue_sender(sender);
    return memory_done != sender->memory_done || (sender->watched && sender->taken >= sender->wanted);
}
