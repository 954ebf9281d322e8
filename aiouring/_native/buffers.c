/* The table of registered buffers: which of them is lent. */
#include "uring.h"

void au_buffers_init(au_buffers *buffers, au_ring *ring, void *base, uint64_t size, uint64_t stride, uint32_t count)
{
    buffers->ring = ring;
    buffers->base = base;
    buffers->size = size;
    buffers->stride = stride;
    buffers->count = count;
}

int au_buffers_register(au_buffers *buffers)
{
    struct iovec *vectors = calloc(buffers->count, sizeof *vectors);
    if (!vectors)
        return -ENOMEM;
    for (uint32_t i = 0; i < buffers->count; i++)
        vectors[i] = (struct iovec){buffers->base + i * buffers->stride, buffers->size};
    int rc = au_ring_register(buffers->ring, AU_REGISTER_BUFFERS, vectors, buffers->count);
    free(vectors);
    buffers->registered = rc == 0;
    return rc;
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

int au_buffers_lend(au_buffers *buffers, uint32_t index)
{
    if (index >= buffers->count)
        return AU_BAD_INDEX;
    if (buffers->lent[index])
        return AU_NOT_LENT;
    buffers->lent[index] = 1;
    return 0;
}

int au_buffers_give_back(au_buffers *buffers, uint32_t index)
{
    if (index >= buffers->count)
        return AU_BAD_INDEX;
    if (!buffers->lent[index])
        return AU_NOT_LENT;
    buffers->lent[index] = 0;
    return 0;
}
