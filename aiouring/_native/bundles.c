/* Bundles: one completion that brings several buffers (IORING_RECVSEND_BUNDLE).  Since Linux 6.10.
 *
 * The completion names the first buffer, and says how many bytes came in all.  The others are those that follow it in
 * the ring, in the order in which they were published, which is not that of their numbers (KERNEL.md C5).  Where the
 * first stands is noted when it is published (`place`), and what follows it there cannot be written over before it is
 * taken and published again itself.  All of them are full but the last; of a group that gives out parts, the first may
 * have been begun and the last may go on.
 *
 * Each buffer becomes an event of its own, as if the kernel had posted a completion for it, all but the last with
 * F_MORE: so whoever knows single buffers knows bundles.  Whether the kernel goes on with the last is told by its
 * being full, not by F_BUF_MORE: kernels of before the summer of 2026 lose that flag here, where a bundle was received
 * in two steps.
 */
#include "uring.h"

/* How many buffers `length` bytes take, the first of which has `room` left. */
static uint32_t buffers_for(const au_group *group, uint32_t length, uint32_t room)
{
    return length <= room ? 1 : 2 + (length - room - 1) / group->size;
}

/* The event at `event`, a completion of a bundle, becomes one of each of its buffers.  Returns how many; there is room
 * for AU_BUNDLE_MAX. */
static uint32_t take_bundle(au_group *group, int64_t *event)
{
    uint32_t flags = (uint32_t)event[2], buffer_id = flags >> AU_CQE_BUFFER_SHIFT, left = (uint32_t)event[1];
    if (buffer_id >= group->count)
        return unfounded(event);
    uint16_t place = group->shares[buffer_id].place;
    uint32_t count = buffers_for(group, left, group->size - group->shares[buffer_id].used);
    if (count > (uint16_t)(group->tail - place) || count > AU_BUNDLE_MAX)
        return unfounded(event); /* more than was published, or than the kernel gives out at once */
    int64_t user_data = event[0];
    for (uint32_t i = 0; i < count; i++, event += 3) {
        buffer_id = group->entries[(uint16_t)(place + i) & (group->capacity - 1)].bid;
        uint32_t length = group->size - group->shares[buffer_id].used, full = left >= length;
        length = full ? length : left;
        left -= length;
        event[0] = user_data;
        event[1] = length;
        event[2] = buffer_id << AU_CQE_BUFFER_SHIFT | AU_CQE_F_BUFFER | (full ? 0 : AU_CQE_F_BUF_MORE);
        event[2] |= i + 1 < count ? AU_CQE_F_MORE : flags & (AU_CQE_F_MORE | AU_CQE_F_SOCK_NONEMPTY);
        if (group->incremental)
            take_part_for(group, event);
        else if (au_group_take(group, buffer_id) == 0)
            event[2] |= AU_CQE_TAKEN;
        else
            unfounded(event);
        if (event[1] < 0)
            return i + 1; /* what was to follow is not believed either, and stays out of use */
    }
    return count;
}
