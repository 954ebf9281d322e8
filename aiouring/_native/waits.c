/* Waiting for children and for words of memory. */
#include "uring.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/wait.h>

/* The state of a child goes to `info`, a siginfo_t, which the caller keeps until the completion. */
int au_prepare_waitid(au_ring *ring, uint64_t user_data, int opcode, int id, int idtype, void *info, int options,
                      uint64_t how)
{
    struct au_sqe *sqe;
    int rc = next_entry(ring, user_data, opcode, id, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->len = (uint32_t)idtype;
    sqe->off = (uint64_t)(uintptr_t)info;
    sqe->file_index = options;
    return 0;
}

int64_t au_siginfo_size(void) { return sizeof(siginfo_t); }

/* What a siginfo_t says of a child: pid, uid, signo, status, code. */
void au_siginfo_read(const void *info, int32_t *fields)
{
    siginfo_t found;
    memcpy(&found, info, sizeof found);
    fields[0] = found.si_pid;
    fields[1] = (int32_t)found.si_uid;
    fields[2] = found.si_signo;
    fields[3] = found.si_status;
    fields[4] = found.si_code;
}

static uint8_t *word_at(const void *memory, int64_t capacity, int64_t start)
{
    uint8_t *word = (uint8_t *)(uintptr_t)memory + start;
    return inside(capacity, start, 4) && (uintptr_t)word % 4 == 0 ? word : NULL;
}

/* FUTEX_WAIT for `value`, or FUTEX_WAKE of `value` waiters; `flags` are AU_FUTEX2_*. */
int au_prepare_futex(au_ring *ring, uint64_t user_data, int opcode, const void *memory, int64_t capacity,
                     int64_t start, uint32_t value, uint32_t mask, uint32_t flags, uint64_t how)
{
    struct au_sqe *sqe;
    const uint8_t *word = word_at(memory, capacity, start);
    if (!word)
        return AU_BAD_LENGTH;
    int rc = next_entry(ring, user_data, opcode, (int)flags, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->addr = (uint64_t)(uintptr_t)word;
    sqe->off = value;
    sqe->addr3 = mask;
    return 0;
}

/* One of the words that FUTEX_WAITV waits for. */
int au_futex_set(struct au_futex_waitv *waiter, const void *memory, int64_t capacity, int64_t start, uint32_t value,
                 uint32_t flags)
{
    const uint8_t *word = word_at(memory, capacity, start);
    if (!word)
        return AU_BAD_LENGTH;
    *waiter = (struct au_futex_waitv){.value = value, .address = (uint64_t)(uintptr_t)word, .flags = flags};
    return 0;
}

int au_prepare_futexes(au_ring *ring, uint64_t user_data, int opcode, const struct au_futex_waitv *waiters,
                       uint32_t count, uint64_t how)
{
    struct au_sqe *sqe;
    int rc = next_entry(ring, user_data, opcode, 0, how, &sqe);
    if (rc < 0)
        return rc;
    sqe->addr = (uint64_t)(uintptr_t)waiters;
    sqe->len = count;
    return 0;
}

/* Wake one other waiter at once: a wake that came for somebody who does not wait any more goes on to the next. */
int au_futex_pass_on(const void *memory, int64_t capacity, int64_t start, uint32_t mask, uint32_t flags)
{
    const uint8_t *word = word_at(memory, capacity, start);
    if (!word)
        return AU_BAD_LENGTH;
    int command = FUTEX_WAKE_BITSET | (flags & AU_FUTEX2_PRIVATE ? FUTEX_PRIVATE_FLAG : 0);
    long rc = syscall(SYS_futex, word, command, 1, NULL, NULL, mask);
    return rc < 0 ? -errno : (int)rc;
}
