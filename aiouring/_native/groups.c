/* Rings of provided buffers: who has each buffer, and when the kernel sees it again. */
#include "uring.h"

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

/* `count` is also how far the group may ever grow.  Whoever wants to begin with fewer buffers lowers group->count before
 * the registration. */
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
    group->capacity = count;
    group->group_id = group_id;
    group->entries = entries;
    group->entries_bytes = bytes;
    return 0;
}

/* What lies `behind` places behind the tail, where the kernel does not look yet. */
static struct au_buf *entry_at(au_group *group, uint32_t behind)
{
    return &group->entries[(uint16_t)(group->tail + behind) & (group->capacity - 1)];
}

/* Write a returned buffer behind the tail: 14 bytes, never 16, see struct au_buf. */
static void write_buffer(au_group *group, uint32_t behind, uint32_t buffer_id)
{
    struct au_buf *entry = entry_at(group, behind);
    entry->addr = (uint64_t)(uintptr_t)(group->base + (uint64_t)buffer_id * group->size);
    entry->len = group->size;
    entry->bid = (uint16_t)buffer_id;
    if (group->shares) {
        group->shares[buffer_id].used = 0;
        group->shares[buffer_id].place = (uint16_t)(group->tail + behind);
    }
}

/* Behind the tail lie the `unpublished`, which the next turn shows to the kernel, and then the `added`, which
 * wait for au_group_advance().  One more of the first kind moves the second kind up, so that neither waits for
 * the other and both keep their order. */
static void add_buffer(au_group *group, uint32_t buffer_id)
{
    for (uint32_t at = group->unpublished + group->added; at > group->unpublished; at--)
        write_buffer(group, at, entry_at(group, at - 1)->bid);
    write_buffer(group, group->unpublished, buffer_id);
    group->unpublished++;
}

/* Let turns find the group by its id. */
static int enter_in_table(au_group *group)
{
    au_ring *ring = group->ring;
    if (group->group_id >= ring->group_slots) {
        uint32_t slots = group->group_id + 1u;
        au_group **table = realloc(ring->group_table, slots * sizeof *table);
        if (!table)
            return -ENOMEM;
        memset(table + ring->group_slots, 0, (slots - ring->group_slots) * sizeof *table);
        ring->group_table = table;
        ring->group_slots = slots;
    }
    ring->group_table[group->group_id] = group;
    return 0;
}

/* The group that a multishot receive's user_data names, or NULL; then nobody has taken the buffer. */
static au_group *group_of(const au_ring *ring, uint64_t user_data)
{
    uint32_t group_id = (uint16_t)(user_data >> AU_TAG_SHIFT);
    return user_data >> AU_TAG_BIT == 1 && group_id < ring->group_slots ? ring->group_table[group_id] : NULL;
}

static void leave_table(au_group *group)
{
    au_ring *ring = group->ring;
    if (group->group_id < ring->group_slots && ring->group_table[group->group_id] == group)
        ring->group_table[group->group_id] = NULL;
}

/* Nothing in flight names the group, which was unregistered, any more.  Until then it stays in the table: what has
 * completed already is still to be taken, in its order, and with all of its buffers. */
void au_group_forget(au_group *group) { leave_table(group); }

int au_group_register(au_group *group)
{
    struct au_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)group->entries,
                             .ring_entries = group->capacity, .bgid = group->group_id,
                             .flags = group->incremental ? AU_PBUF_RING_INC : 0};
    int rc = group->tagged ? enter_in_table(group) : 0;
    if (rc == 0)
        rc = au_ring_register(group->ring, AU_REGISTER_PBUF_RING, &reg, 1);
    if (rc < 0) {
        leave_table(group);
        return rc;
    }
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
    if (group->owner[buffer_id] != WITH_KERNEL || group->with_kernel == 0 || group->incremental)
        return AU_NOT_LENT;
    group->owner[buffer_id] = LENT;
    group->with_kernel--;
    group->lent++;
    if (group->lent > group->high_water)
        group->high_water = group->lent;
    return 0;
}

static void queue_group(au_group *group)
{
    if (!group->queued) {
        group->queued = true;
        group->next_unpublished = group->ring->unpublished;
        group->ring->unpublished = group;
    }
}

/* `part` is the buffer's id, and above it where the part begins, of a group that gives out parts.  Returns 1 if the
 * buffer now waits to be published, 0 if it does not: the kernel no longer has the group, or other parts are out. */
int au_group_release(au_group *group, uint64_t part)
{
    uint32_t buffer_id = part & AU_BUFFER_ID_MASK;
    if (buffer_id >= group->count || (part != buffer_id && !group->incremental))
        return AU_BAD_INDEX;
    int rc = group->registered ? au_ring_check(group->ring) : 0;
    if (rc < 0 && rc != AU_CLOSED)
        return rc;
    int last = group->incremental ? return_part(group, buffer_id) : 1;
    if (last <= 0)
        return last;
    if (group->owner[buffer_id] != LENT)
        return AU_NOT_LENT;
    group->owner[buffer_id] = WITH_KERNEL;
    group->lent--;
    if (!group->registered || rc == AU_CLOSED)
        return 0;
    add_buffer(group, buffer_id);
    queue_group(group);
    return 1;
}

/* A group that was unregistered is closed, even if the kernel has another one under its number by now. */
static int check_group(au_group *group)
{
    int rc = au_ring_check(group->ring);
    return rc == 0 && !group->registered ? AU_CLOSED : rc;
}

/* The next `count` buffers exist from here on: the kernel's, which sees them after the next turn.  Their memory has lain
 * there, untouched, since the registration, and the ring has had room for them: in flight or not, receives go on. */
int au_group_grow(au_group *group, uint32_t count)
{
    int rc = check_group(group);
    if (rc < 0)
        return rc;
    if (count > group->capacity - group->count)
        return AU_TOO_MANY;
    for (; count; count--) {
        add_buffer(group, group->count++);
        queue_group(group);
    }
    return 0;
}

/* The buffer is nobody's from here on: neither lent, nor to be seen by the kernel before au_group_advance().  Returns 1
 * for a part of a buffer that others, or the kernel, still have parts of: then it was released, and nothing was added. */
int au_group_add(au_group *group, uint64_t part)
{
    uint32_t buffer_id = part & AU_BUFFER_ID_MASK;
    int rc = check_group(group);
    if (rc < 0)
        return rc;
    if (buffer_id >= group->count || (part != buffer_id && !group->incremental))
        return AU_BAD_INDEX;
    int last = group->incremental ? return_part(group, buffer_id) : 1;
    if (last <= 0)
        return last < 0 ? last : 1;
    if (group->owner[buffer_id] != LENT)
        return AU_NOT_LENT;
    group->owner[buffer_id] = ADDED;
    group->lent--;
    write_buffer(group, group->unpublished + group->added, buffer_id);
    group->added++;
    return 0;
}

/* Show `count` of the added buffers to the kernel, those added first, and with them what was released. */
int au_group_advance(au_group *group, uint32_t count)
{
    int rc = check_group(group);
    if (rc < 0)
        return rc;
    if (count > group->added)
        return AU_TOO_MANY;
    for (; count; count--, group->added--, group->unpublished++)
        group->owner[entry_at(group, group->unpublished)->bid] = WITH_KERNEL;
    if (group->unpublished)
        publish_group(group);
    return 0;
}

/* Both queues move on, by counts of their own: not every completion took a buffer (KERNEL.md C5).  They are two
 * stores, buffers first, and both counts are checked before either. */
int au_group_cq_advance(au_group *group, uint32_t completions, uint32_t buffers)
{
    if (completions > au_ring_peeked(group->ring))
        return AU_TOO_MANY;
    int rc = au_group_advance(group, buffers);
    return rc < 0 ? rc : au_ring_advance(group->ring, completions);
}

/* How far the kernel has read, a free-running 16-bit count.  Since Linux 6.8. */
int au_group_head(au_group *group)
{
    struct au_buf_status status = {.buf_group = group->group_id};
    int rc = check_group(group);
    if (rc == 0)
        rc = au_ring_register(group->ring, AU_REGISTER_PBUF_STATUS, &status, 1);
    return rc < 0 ? rc : (int)status.head;
}

/* Whether the kernel still has a buffer which a completion says that it gave out.  Read from the entries between
 * the kernel's head and our tail, so it needs Linux 6.8. */
int au_group_still_has(au_group *group, uint32_t buffer_id)
{
    int head = au_group_head(group);
    if (head < 0)
        return head;
    for (uint16_t at = (uint16_t)head; at != group->tail; at++)
        if (group->entries[at & (group->capacity - 1)].bid == buffer_id)
            return 1;
    return 0;
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

/* A receive that stays armed, or a read (READ_MULTISHOT is an operation of its own); `total` bytes end it, 0 is no limit. */
int au_prepare_multishot(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                         uint32_t total, uint64_t how)
{
    int rc = group->ring == ring ? au_ring_check(ring) : AU_BAD_INDEX;
    if (rc == 0 && group->registered)
        rc = enter_in_table(group);
    if (rc == 0)
        rc = au_prepare_select(ring, user_data, opcode, fd, group, 0, 0, 0,
                               opcode == AU_OP_READ_MULTISHOT ? how : how | AU_RECV_MULTISHOT << 16);
    if (rc == 0) {
        ring->sqes[(ring->filled - 1) & ring->sq_mask].file_index = (int32_t)total; /* optlen, here */
        group->bundled |= (how >> 16 & AU_RECVSEND_BUNDLE) != 0;
    }
    return rc;
}

/* A receive that stays armed for messages.  The kernel reads the message's header when it takes the request and writes
 * what came, with all that belongs to it, into the group's buffer; see struct au_recvmsg_out.  It knows no limit in
 * bytes here (EINVAL, measured on 6.18). */
int au_prepare_multishot_message(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                                 au_message *message, uint32_t op_flags, uint64_t how)
{
    int rc = au_prepare_multishot(ring, user_data, opcode, fd, group, 0, how);
    return rc == 0 ? name_message(ring, message, op_flags) : rc;
}

/* One message, its payload into a buffer of the group and all that belongs to it into `message`. */
int au_prepare_select_message(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                              au_message *message, uint32_t op_flags, uint64_t how)
{
    renew_message(message);
    int rc = au_prepare_select(ring, user_data, opcode, fd, group, 0, 0, 0, how);
    return rc == 0 ? name_message(ring, message, op_flags) : rc;
}
