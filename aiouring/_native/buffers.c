/* The table of registered buffers: where each lies, and which of them is lent.
 *
 * Python names a buffer by a *key*: the slot's index in the low 16 bits, and above them how often the slot's
 * buffer has been replaced.  A key from before a replacement names no buffer any more, so a lease of the old
 * memory cannot reach the new one.  Addresses come in once, as pointers that hold their memory in Python. */
#include "uring.h"

static struct au_slot *slot_of(au_buffers *buffers, uint64_t key)
{
    return (key & AU_SLOT_MASK) < buffers->count ? &buffers->slots[key & AU_SLOT_MASK] : NULL;
}

/* The slot of a key, or the rule that it breaks. */
static int find_slot(au_buffers *buffers, uint64_t key, struct au_slot **slot)
{
    *slot = slot_of(buffers, key);
    if (!*slot)
        return AU_BAD_INDEX;
    return (*slot)->generation == key >> AU_SLOT_BITS ? 0 : AU_REPLACED;
}

void au_buffers_init(au_buffers *buffers, au_ring *ring, struct au_slot *slots, uint32_t count)
{
    buffers->ring = ring;
    buffers->slots = slots;
    buffers->count = count;
}

uint64_t au_buffers_key(au_buffers *buffers, uint32_t index)
{
    struct au_slot *slot = slot_of(buffers, index);
    return slot ? slot->generation << AU_SLOT_BITS | index : UINT64_MAX;
}

uint64_t au_buffers_size(au_buffers *buffers, uint64_t key)
{
    struct au_slot *slot = slot_of(buffers, key);
    return slot ? slot->size : 0;
}

static void occupy(struct au_slot *slot, void *memory, uint64_t size)
{
    *slot = (struct au_slot){memory, memory ? size : 0, slot->generation + 1, 0};
}

static struct iovec *vectors_of(void *const *memories, const uint64_t *sizes, uint32_t count)
{
    struct iovec *vectors = calloc(count, sizeof *vectors);
    for (uint32_t i = 0; vectors && i < count; i++)
        vectors[i] = (struct iovec){memories[i], memories[i] ? sizes[i] : 0};
    return vectors;
}

/* Register the whole table.  `tags` may be NULL: then the call of Linux 5.1 does, where no flag is asked for. */
int au_buffers_register(au_buffers *buffers, void *const *memories, const uint64_t *sizes, const uint64_t *tags,
                        uint32_t flags)
{
    bool sparse = flags & AU_RSRC_REGISTER_SPARSE;
    struct iovec *vectors = sparse ? NULL : vectors_of(memories, sizes, buffers->count);
    if (!sparse && !vectors)
        return -ENOMEM;
    int rc;
    if (tags || flags) {
        struct au_rsrc_register argument = {.nr = buffers->count,
                                            .flags = flags,
                                            .data = (uint64_t)(uintptr_t)vectors,
                                            .tags = (uint64_t)(uintptr_t)tags};
        rc = au_ring_register(buffers->ring, AU_REGISTER_BUFFERS2, &argument, sizeof argument);
    } else {
        rc = au_ring_register(buffers->ring, AU_REGISTER_BUFFERS, vectors, buffers->count);
    }
    for (uint32_t i = 0; rc == 0 && !sparse && i < buffers->count; i++)
        buffers->slots[i] = (struct au_slot){.base = vectors[i].iov_base, .size = vectors[i].iov_len};
    free(vectors);
    buffers->registered = rc == 0;
    return rc;
}

/* Replace `count` buffers from `index` on; a NULL memory empties its slot.  The kernel stops at the first that
 * it refuses: returns how many were replaced, or the errno if none was. */
int au_buffers_update(au_buffers *buffers, uint32_t index, uint32_t count, void *const *memories,
                      const uint64_t *sizes, const uint64_t *tags)
{
    if (!buffers->registered)
        return AU_CLOSED;
    if (index > buffers->count || count > buffers->count - index)
        return AU_BAD_INDEX;
    struct iovec *vectors = vectors_of(memories, sizes, count);
    if (!vectors)
        return -ENOMEM;
    struct au_rsrc_update2 argument = {.offset = index,
                                       .data = (uint64_t)(uintptr_t)vectors,
                                       .tags = (uint64_t)(uintptr_t)tags,
                                       .nr = count};
    int rc = au_ring_register(buffers->ring, AU_REGISTER_BUFFERS_UPDATE, &argument, sizeof argument);
    free(vectors);
    for (int i = 0; i < rc; i++)
        occupy(&buffers->slots[index + i], memories[i], sizes[i]);
    return rc;
}

/* Clone `count` buffers of `source` into `buffers`, which has room for them. */
int au_buffers_clone(au_buffers *buffers, uint32_t index, au_buffers *source, uint32_t source_index, uint32_t count,
                     uint32_t flags)
{
    int rc = au_ring_check(source->ring);
    if (rc < 0)
        return rc;
    if (!source->registered)
        return AU_CLOSED;
    if (index > buffers->count || count > buffers->count - index)
        return AU_BAD_INDEX;
    if (source_index > source->count || count > source->count - source_index)
        return AU_BAD_INDEX;
    struct au_slot *copies = malloc((count ? count : 1) * sizeof *copies); /* source and target may overlap */
    if (!copies)
        return -ENOMEM;
    memcpy(copies, source->slots + source_index, count * sizeof *copies);
    struct au_clone_buffers argument = {.src_fd = (uint32_t)source->ring->fd,
                                        .flags = flags,
                                        .src_off = source_index,
                                        .dst_off = index,
                                        .nr = count};
    if (!flags && !index && count == source->count)
        argument.nr = 0; /* all of them: Linux 6.12 knows nothing else */
    rc = au_ring_register(buffers->ring, AU_REGISTER_CLONE_BUFFERS, &argument, 1);
    for (uint32_t i = 0; rc == 0 && i < count; i++)
        occupy(&buffers->slots[index + i], copies[i].base, copies[i].size);
    free(copies);
    if (rc == 0)
        buffers->registered = 1;
    return rc;
}

/* Does this kernel know cloning by offsets?  Asked about no ring at all, one that does finds the descriptor bad. */
int au_ring_can_clone(au_ring *ring)
{
    struct au_clone_buffers nothing = {.src_fd = UINT32_MAX, .nr = 1};
    return au_ring_register(ring, AU_REGISTER_CLONE_BUFFERS, &nothing, 1) == -EBADF;
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

int au_buffers_lend(au_buffers *buffers, uint64_t key)
{
    struct au_slot *slot;
    int rc = find_slot(buffers, key, &slot);
    if (rc < 0)
        return rc;
    if (slot->lent || !slot->base)
        return AU_NOT_LENT;
    slot->lent = 1;
    return 0;
}

int au_buffers_give_back(au_buffers *buffers, uint64_t key)
{
    struct au_slot *slot;
    int rc = find_slot(buffers, key, &slot);
    if (rc < 0)
        return rc;
    if (!slot->lent)
        return AU_NOT_LENT;
    slot->lent = 0;
    return 0;
}

/* Is [start, start + length) inside `capacity` bytes?  No addition that could overflow. */
static bool inside(int64_t capacity, int64_t start, int64_t length)
{
    return start >= 0 && length >= 0 && start <= capacity && length <= capacity - start;
}

/* The slot that a request of `ring` may name: of its own table, registered, and lent to whoever has the key. */
static inline int slot_for_request(au_ring *ring, au_buffers *buffers, uint64_t key, struct au_slot **slot)
{
    if (buffers->ring != ring || (key & AU_SLOT_MASK) >= buffers->count)
        return AU_BAD_INDEX;
    if (!buffers->registered)
        return AU_CLOSED;
    *slot = &buffers->slots[key & AU_SLOT_MASK];
    if ((*slot)->generation != key >> AU_SLOT_BITS)
        return AU_REPLACED;
    return (*slot)->lent ? 0 : AU_NOT_LENT;
}
