/* Shares: buffers that are given out in parts, each received message the next part of one (IOU_PBUF_RING_INC).
 * Since Linux 6.12.
 *
 * Ownership.  While the kernel fills a buffer it is the kernel's (WITH_KERNEL), although parts of it are with callers:
 * the kernel writes only behind them, and nobody else behind them at all.  The completion that fills it to the end, or
 * comes without F_BUF_MORE, ends that: from then on the buffer is LENT, as long as any part of it is, and the part
 * that is released last gives it back to the kernel, from its first byte on.  So a buffer has two who keep it from being
 * published again, the kernel and the callers, and `parts` counts the latter.  with_kernel and lent count buffers, as
 * they do for groups without shares, and a buffer that is used in part is with the kernel.
 *
 * Where a part begins is not in the completion: it is the sum of what came before it in the same buffer.  That holds for
 * completions in their order, so those of a loop's ring are taken in the turn that finds them, and requests must say
 * whose buffers they take (AU_UNTAGGED).  The kernel moves on in a buffer by what it received, in the order of the
 * completions, where it waits for data (sockets, pipes).  A read from a file, or one by a worker, takes all that it
 * asked for when it begins (measured on 6.18, and up to some version it does not say what is left): parts would
 * overlap, or begin elsewhere.  A receive of messages gives up a remainder that is too small for the message's header
 * without a completion that says so (liburing issue 1433).  So both are refused (AU_NOT_IN_PARTS).
 *
 * Measured on 6.18: the end of a stream and errors take nothing; a read's end names the buffer all the same, with
 * F_BUF_MORE, and kernels up to some version without: so a completion without bytes changes nothing here.  The kernel
 * rewrites address and length of the entry, so an entry is written anew whenever its buffer is published.
 */
#include "uring.h"

/* To be called between au_group_init() and au_group_register(). */
void au_group_share(au_group *group, struct au_share *shares, int incremental, int tagged)
{
    group->shares = shares;
    group->incremental = incremental != 0;
    group->tagged = incremental && tagged;
}

/* Whether a request may take parts, as those do that move on by what they got: 0, or what is wrong with it. */
static int check_shares(const au_group *group, uint64_t user_data, int opcode, int fd, uint64_t how)
{
    if (group->tagged && user_data >> AU_TAG_SHIFT != (1ull << (AU_TAG_BIT - AU_TAG_SHIFT) | group->group_id))
        return AU_UNTAGGED;
    if (opcode == AU_OP_RECV)
        return how & AU_SQE_ASYNC ? AU_NOT_IN_PARTS : 0;
    if (opcode != AU_OP_READ || how & (AU_SQE_ASYNC | AU_SQE_FIXED_FILE))
        return AU_NOT_IN_PARTS;
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    return S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode) ? 0 : AU_NOT_IN_PARTS;
}

/* The kernel's bytes in a buffer become somebody's.  Returns where they begin. */
int64_t au_group_take_part(au_group *group, uint32_t flags, int64_t length)
{
    uint32_t buffer_id = flags >> AU_CQE_BUFFER_SHIFT;
    if (!group->incremental || buffer_id >= group->count)
        return AU_BAD_INDEX;
    if (group->owner[buffer_id] != WITH_KERNEL || group->with_kernel == 0)
        return AU_NOT_LENT;
    struct au_share *share = &group->shares[buffer_id];
    if (length <= 0 || length > (int64_t)(group->size - share->used))
        return AU_BAD_LENGTH;
    uint32_t start = share->used;
    share->used += (uint32_t)length;
    share->parts++;
    group->parts++;
    if (share->used == group->size || !(flags & AU_CQE_F_BUF_MORE)) {
        group->owner[buffer_id] = LENT;
        group->with_kernel--;
        group->lent++;
        if (group->lent > group->high_water)
            group->high_water = group->lent;
    }
    return start;
}

/* Bytes that cannot be where the kernel says that they are become an error. */
static uint32_t unfounded(int64_t *event)
{
    event[1] = -EIO;
    event[2] = 0;
    return 1;
}

/* Take the part that a completion names, in the turn that finds it, and write where it begins into the event. */
static void take_part_for(au_group *group, int64_t *event)
{
    int64_t start = au_group_take_part(group, (uint32_t)event[2], event[1]);
    if (start >= 0)
        event[2] |= AU_CQE_TAKEN | start << AU_OFFSET_SHIFT;
    else
        unfounded(event);
}

/* One part less is out.  Returns 1 if that was the last of a buffer which the kernel is done with. */
static int return_part(au_group *group, uint32_t buffer_id)
{
    struct au_share *share = &group->shares[buffer_id];
    if (share->parts == 0)
        return AU_NOT_LENT;
    share->parts--;
    group->parts--;
    return share->parts == 0 && group->owner[buffer_id] == LENT;
}

/* Whether a part is out, as far as counts can tell. */
static bool part_is_lent(const au_group *group, uint32_t buffer_id, uint64_t start, uint64_t length)
{
    const struct au_share *share = &group->shares[buffer_id];
    return share->parts != 0 && start + length <= share->used;
}
