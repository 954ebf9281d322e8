/* What Python sees of uring.c.  cffi checks every line of this against the compiled code. */

/* Rule violations, outside the range of errno. */
enum au_rule {
    AU_CLOSED, AU_FORKED, AU_WRONG_THREAD, AU_DISABLED, AU_FULL,
    AU_BAD_LENGTH, AU_BAD_OFFSET, AU_BAD_INDEX, AU_NOT_LENT, AU_RING_FD, AU_FORBIDDEN, AU_BAD_SLOT, AU_REPLACED,
    AU_TOO_MANY, AU_LATE_SLOT, AU_UNTAGGED, AU_NOT_IN_PARTS, ...
};

enum { AU_AGAIN = ..., AU_EVENTS_MAX = ..., AU_GUARD_FD = ..., AU_RWF_SHIFT = ..., AU_RWF_MASK = ..., AU_SLOTS_AT_ONCE = ..., AU_RING_ENABLED = ... };
enum { AU_HIGH_WATER = ..., AU_COPY_MAX = ..., AU_TAG_BIT = ..., AU_TAG_SHIFT = ..., AU_CQE_TAKEN = ... };
enum { AU_BUFFER_ID_BITS = ..., AU_BUFFER_ID_MASK = ... };
enum { AU_FIRST_SLOT = ... };
enum { AU_SLOT_FILLED = ... };
enum { AU_CACHED_MAX = ..., AU_WHOLE = ... };
enum { AU_SLOT_MASK = ..., AU_MAP_HUGETLB = ... };

typedef struct au_ring {
    int fd;
    int event_fd;
    int signal_fd;
    int state;
    int restricted;
    uint32_t setup_flags, features, sq_entries, cq_entries;
    uint32_t ready;
    int64_t events[...];
    uint64_t last_user_data;
    uint64_t submitted, completed, enters, wakeups, overflow_flushes, submit_errors;
    uint32_t sends_in_flight;
    uint8_t *region;
    uint32_t wait_slots;
    ...;
} au_ring;

struct au_slot { uint64_t size; uint64_t generation; uint8_t lent; ...; };
typedef struct au_buffers { uint32_t count; int registered; ...; } au_buffers;
struct iovec { ...; };
typedef struct au_message { uint32_t capacity; struct iovec vector[]; ...; } au_message;

struct au_share { uint32_t used, parts; uint16_t place; };
typedef struct au_group {
    uint32_t count, with_kernel, unpublished, added, lent, high_water, parts;
    uint32_t capacity;
    uint16_t group_id, tail;
    int registered;
    uint64_t published, advances;
    uint8_t owner[];
    ...;
} au_group;

typedef struct au_sender {
    uint64_t number, pending, taken, wanted, high_water, memory_added, memory_done;
    int watched, in_flight, failure, crowded, held;
    ...;
} au_sender;

/* The kernel: three system calls, replaceable by a simulated one. */
struct au_kernel {
    int (*setup)(unsigned entries, void *params);
    int (*enter)(int fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                 const void *argument, size_t size);
    int (*do_register)(int fd, unsigned opcode, void *argument, unsigned count);
};
extern struct au_kernel au_kernel;
int au_kernel_setup(unsigned entries, void *params);
int au_kernel_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                    const void *argument, size_t size);
int au_kernel_register(int fd, unsigned opcode, void *argument, unsigned count);

int au_ring_setup(au_ring *ring, unsigned sq_entries, unsigned cq_entries, unsigned flags);
int au_ring_enable(au_ring *ring);
int au_ring_check(au_ring *ring);
int au_ring_duplicate(au_ring *ring);
int au_ring_open_eventfd(au_ring *ring);
int au_ring_use_eventfd(au_ring *ring, int fd);
int au_ring_close_eventfd(au_ring *ring);
int au_ring_silence(au_ring *ring, int silent);
int au_ring_silenced(au_ring *ring);
int au_ring_restrict(au_ring *ring, void *restrictions, unsigned count);
int au_ring_register_region(au_ring *ring, void *memory, uint64_t bytes, int wait_arguments);
void au_region_forget(au_ring *ring, void *memory, uint64_t bytes);
int au_ring_set_wait(au_ring *ring, uint32_t slot, int64_t timeout_ns, uint32_t min_wait_usec);
int au_ring_withdraw(au_ring *ring, uint64_t *user_data);
int au_ring_register(au_ring *ring, unsigned opcode, void *argument, unsigned count);
unsigned au_ring_unsubmitted(au_ring *ring);
int au_ring_link(au_ring *ring, const uint64_t *numbers, uint32_t count);
int au_ring_take_back(au_ring *ring, const uint64_t *numbers, uint32_t count);
int au_ring_disarm(au_ring *ring, uint64_t user_data);
int au_ring_turn(au_ring *ring, int woken);
int au_ring_wait(au_ring *ring, unsigned min_complete, int64_t time_ns, uint32_t min_wait_usec, unsigned flags);
int au_ring_wait_slot(au_ring *ring, unsigned min_complete, uint32_t slot, unsigned flags);
int au_ring_peek(au_ring *ring);
uint32_t au_ring_peeked(const au_ring *ring);
int au_ring_advance(au_ring *ring, uint32_t count);
int au_ring_close(au_ring *ring);

int au_prepare(au_ring *ring, uint64_t user_data, int opcode, int fd, int64_t offset,
               uint64_t address, uint32_t length, uint32_t op_flags, uint64_t how);
int au_prepare_memory(au_ring *ring, uint64_t user_data, int opcode, int fd, const void *memory,
                      int64_t capacity, int64_t start, int64_t length, int64_t offset,
                      uint32_t op_flags, uint64_t how);
int au_prepare_fixed(au_ring *ring, uint64_t user_data, int opcode, int fd, au_buffers *buffers,
                     uint64_t key, int64_t start, int64_t length, int64_t offset, uint64_t how);
int au_prepare_fixed_vector(au_ring *ring, uint64_t user_data, int opcode, int fd, au_buffers *buffers, uint64_t key,
                            struct iovec *vectors, const int64_t *ranges, uint32_t count, int64_t offset,
                            uint64_t how);
int au_prepare_splice(au_ring *ring, uint64_t user_data, int opcode, int fd, int64_t offset, int source,
                      int64_t source_offset, int64_t length, uint64_t how);
int au_prepare_select(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                      int64_t length, int64_t offset, uint32_t op_flags, uint64_t how);

int au_prepare_slot(au_ring *ring, uint64_t user_data, int opcode, int fd, int64_t offset, uint32_t length,
                    uint32_t op_flags, int64_t slot, uint64_t how);
int au_prepare_path(au_ring *ring, uint64_t user_data, int opcode, int fd, const void *first, const void *second,
                    const void *third, uint32_t length, uint32_t op_flags, int64_t slot, uint64_t how);
int au_prepare_array(au_ring *ring, uint64_t user_data, int opcode, int32_t *array, uint32_t count, int64_t slot,
                     uint32_t op_flags, unsigned how);

int au_prepare_socket_command(au_ring *ring, uint64_t user_data, int opcode, int fd, uint32_t command, uint32_t level,
                              uint32_t option, void *memory, uint32_t length, uint64_t how);
struct au_futex_waitv { ...; };
int au_prepare_waitid(au_ring *ring, uint64_t user_data, int opcode, int id, int idtype, void *info, int options,
                      uint64_t how);
int64_t au_siginfo_size(void);
void au_siginfo_read(const void *info, int32_t *fields);
int au_prepare_futex(au_ring *ring, uint64_t user_data, int opcode, const void *memory, int64_t capacity,
                     int64_t start, uint32_t value, uint32_t mask, uint32_t flags, uint64_t how);
int au_futex_set(struct au_futex_waitv *waiter, const void *memory, int64_t capacity, int64_t start, uint32_t value,
                 uint32_t flags);
int au_prepare_futexes(au_ring *ring, uint64_t user_data, int opcode, const struct au_futex_waitv *waiters,
                       uint32_t count, uint64_t how);
int au_futex_pass_on(const void *memory, int64_t capacity, int64_t start, uint32_t mask, uint32_t flags);

int au_files_register(au_ring *ring, int32_t *fds, uint32_t count);
int au_files_unregister(au_ring *ring);
int au_files_update(au_ring *ring, uint32_t index, int32_t *fds, uint32_t count);
int64_t au_slot_serial(au_ring *ring, uint32_t index);
int64_t au_slot_set(au_ring *ring, uint32_t index, int64_t serial);
int64_t au_slots_used(au_ring *ring);

int au_socket_kind(int fd, int32_t *kind);
int64_t au_read_cached(au_ring *ring, int fd, void *memory, int64_t capacity, int64_t start, int64_t length,
                       int64_t offset, int waited);

int au_prepare_multishot(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                         uint32_t total, uint64_t how);
int au_prepare_multishot_message(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                                 au_message *message, uint32_t op_flags, uint64_t how);
int au_prepare_select_message(au_ring *ring, uint64_t user_data, int opcode, int fd, au_group *group,
                              au_message *message, uint32_t op_flags, uint64_t how);

void au_buffers_init(au_buffers *buffers, au_ring *ring, struct au_slot *slots, uint32_t count);
uint64_t au_buffers_key(au_buffers *buffers, uint32_t index);
uint64_t au_buffers_size(au_buffers *buffers, uint64_t key);
int au_buffers_register(au_buffers *buffers, void *const *memories, const uint64_t *sizes, const uint64_t *tags,
                        uint32_t flags);
int au_buffers_update(au_buffers *buffers, uint32_t index, uint32_t count, void *const *memories,
                      const uint64_t *sizes, const uint64_t *tags);
int au_buffers_clone(au_buffers *buffers, uint32_t index, au_buffers *source, uint32_t source_index, uint32_t count,
                     uint32_t flags);
int au_ring_can_clone(au_ring *ring);
int au_buffers_unregister(au_buffers *buffers);
int au_buffers_lend(au_buffers *buffers, uint64_t key);
int au_buffers_give_back(au_buffers *buffers, uint64_t key);

int au_group_init(au_group *group, au_ring *ring, void *base, uint32_t size, uint32_t count,
                  uint16_t group_id);
void au_group_share(au_group *group, struct au_share *shares, int incremental, int tagged);
int64_t au_group_take_part(au_group *group, uint32_t flags, int64_t length);
void au_group_forget(au_group *group);
int au_group_register(au_group *group);
int au_group_unregister(au_group *group);
int au_group_grow(au_group *group, uint32_t count);
int au_group_take(au_group *group, uint32_t buffer_id);
int au_group_release(au_group *group, uint64_t part);
int au_group_add(au_group *group, uint64_t part);
int au_group_advance(au_group *group, uint32_t count);
int au_group_cq_advance(au_group *group, uint32_t completions, uint32_t buffers);
int au_group_head(au_group *group);
int au_group_still_has(au_group *group, uint32_t buffer_id);
void au_group_close(au_group *group);

int au_message_add(au_message *message, const void *memory, int64_t capacity, int64_t start, int64_t length);
int au_message_add_fixed(au_message *message, au_buffers *buffers, uint64_t key, int64_t start, int64_t length);
int au_message_address(au_message *message, const char *address, uint32_t size);
int au_message_control(au_message *message, void *memory, int64_t capacity);
int au_message_room(au_message *message, uint32_t name_size, int64_t control_size);
int au_message_name(const au_message *message, char *name, uint32_t room);
int64_t au_message_control_size(const au_message *message);
int au_message_flags(const au_message *message);
int au_prepare_receive_message(au_ring *ring, uint64_t user_data, int opcode, int fd, au_message *message,
                               uint32_t op_flags, uint64_t how);
int au_prepare_vector(au_ring *ring, uint64_t user_data, int opcode, int fd, au_message *message, int64_t offset,
                      uint64_t how);
int au_prepare_message(au_ring *ring, uint64_t user_data, int opcode, int fd, au_message *message,
                       au_buffers *buffers, uint64_t key, uint32_t op_flags, uint64_t how);
int au_prepare_send_fixed(au_ring *ring, uint64_t user_data, int opcode, int fd, au_buffers *buffers, uint64_t key,
                          int64_t start, int64_t length, uint32_t op_flags, uint64_t how);

int au_sender_init(au_sender *sender, au_ring *ring, int fd, uint64_t number);
int au_sender_add_buffer(au_sender *sender, au_group *group, uint64_t part, uint32_t length);
int au_sender_add_memory(au_sender *sender, const void *memory, int64_t length);
int au_sender_add_copy(au_sender *sender, const char *bytes, uint64_t length);
int au_sender_drop(au_sender *sender, int failure);
void au_sender_close(au_sender *sender);

struct au_open_how { uint64_t flags, mode, resolve; };
struct au_statx_time { int64_t seconds; uint32_t nanoseconds; ...; };
struct au_statx {
    uint32_t mask, blksize;
    uint64_t attributes;
    uint32_t nlink, uid, gid;
    uint16_t mode;
    uint64_t ino, size, blocks, attributes_mask;
    struct au_statx_time atime, btime, ctime, mtime;
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    uint64_t mnt_id;
    uint32_t dio_mem_align, dio_offset_align;
    uint64_t subvol;
    uint32_t atomic_write_unit_min, atomic_write_unit_max, atomic_write_segments_max, dio_read_offset_align;
    ...;
};
struct au_region_desc { uint64_t user_addr, size; uint32_t flags, id; uint64_t mmap_offset; ...; };
struct au_mem_region_reg { uint64_t region_uptr, flags; ...; };
struct au_clock_register { uint32_t clockid; ...; };
struct au_restriction { uint16_t opcode; uint8_t value; ...; };
struct au_file_index_range { uint32_t off, len; ...; };
struct au_probe_op { uint8_t op; uint16_t flags; ...; };
struct au_probe { uint8_t last_op, ops_len; struct au_probe_op ops[256]; ...; };

/* The simulated kernel of the tests reads and writes these. */
struct au_sqe {
    uint8_t opcode, flags; uint16_t ioprio; int32_t fd; uint64_t off, addr; uint32_t len, op_flags;
    uint64_t user_data; uint16_t buf_index; ...;
};
struct au_cqe { uint64_t user_data; int32_t res; uint32_t flags; };
struct au_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved; uint64_t user_addr;
};
struct au_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved; uint64_t user_addr;
};
struct au_params {
    uint32_t sq_entries, cq_entries, flags, features;
    struct au_sq_offsets sq_off; struct au_cq_offsets cq_off; ...;
};
struct au_buf { uint64_t addr; uint32_t len; uint16_t bid; uint16_t reserved; };
struct au_buf_reg { uint64_t ring_addr; uint32_t ring_entries; uint16_t bgid, flags; ...; };
