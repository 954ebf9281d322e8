"""The typed face of the compiled module; a test holds it to what cffi really exports."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

#: A cffi array of bytes; it holds the export of the buffer that it was made from.
CMemory: TypeAlias = Any
#: A cffi structure that has no face here (the simulated kernel of the tests looks into them).
CStruct: TypeAlias = Any

class CRing:
    fd: int
    event_fd: int
    signal_fd: int
    state: int
    restricted: int
    setup_flags: int
    features: int
    sq_entries: int
    cq_entries: int
    ready: int
    events: CMemory
    last_user_data: int
    submitted: int
    completed: int
    enters: int
    wakeups: int
    overflow_flushes: int
    submit_errors: int
    sends_in_flight: int
    region: Any
    wait_slots: int

class CBuffers:
    count: int
    registered: int

class CGroup:
    owner: Any
    count: int
    with_kernel: int
    unpublished: int
    added: int
    lent: int
    high_water: int
    capacity: int
    parts: int
    group_id: int
    tail: int
    registered: int
    published: int
    advances: int

class CSender:
    number: int
    pending: int
    taken: int
    wanted: int
    high_water: int
    memory_added: int
    memory_done: int
    watched: int
    in_flight: int
    failure: int
    crowded: int
    held: int

class _FFI:
    CData: type
    NULL: Any
    def gc(self, pointer: Any, destructor: Callable[[Any], None]) -> Any: ...
    def new(self, kind: str, initial: object = ...) -> Any: ...
    def cast(self, kind: str, value: object) -> Any: ...
    def callback(self, kind: str, function: Callable[..., int]) -> Any: ...
    def from_buffer(self, data: object, /, *, require_writable: bool = ...) -> CMemory: ...
    def buffer(self, memory: CMemory, size: int = ...) -> Any: ...
    def memmove(self, target: Any, source: Any, size: int) -> None: ...
    def unpack(self, memory: CMemory, length: int) -> list[int]: ...
    def release(self, memory: CMemory) -> None: ...
    def sizeof(self, kind: Any) -> int: ...
    def typeof(self, kind: Any) -> Any: ...

class _Kernel:
    setup: Any
    enter: Any
    do_register: Any

class _Lib:
    au_kernel: _Kernel
    au_kernel_setup: Any
    au_kernel_enter: Any
    au_kernel_register: Any
    def au_ring_setup(self, ring: CRing, sq_entries: int, cq_entries: int, flags: int, /) -> int: ...
    def au_ring_enable(self, ring: CRing, /) -> int: ...
    def au_ring_check(self, ring: CRing, /) -> int: ...
    def au_ring_duplicate(self, ring: CRing, /) -> int: ...
    def au_ring_open_eventfd(self, ring: CRing, /) -> int: ...
    def au_ring_use_eventfd(self, ring: CRing, fd: int, /) -> int: ...
    def au_ring_close_eventfd(self, ring: CRing, /) -> int: ...
    def au_ring_silence(self, ring: CRing, silent: int, /) -> int: ...
    def au_ring_silenced(self, ring: CRing, /) -> int: ...
    def au_ring_restrict(self, ring: CRing, restrictions: CStruct, count: int, /) -> int: ...
    def au_ring_register_region(self, ring: CRing, memory: CMemory, size: int, wait_arguments: int, /) -> int: ...
    def au_region_forget(self, ring: CRing, memory: CMemory, size: int, /) -> None: ...
    def au_ring_set_wait(self, ring: CRing, slot: int, time_ns: int, min_wait_usec: int, /) -> int: ...
    def au_ring_withdraw(self, ring: CRing, user_data: Any, /) -> int: ...
    def au_ring_register(self, ring: CRing, opcode: int, argument: CStruct, count: int, /) -> int: ...
    def au_ring_unsubmitted(self, ring: CRing, /) -> int: ...
    def au_ring_link(self, ring: CRing, numbers: CMemory, count: int, /) -> int: ...
    def au_ring_take_back(self, ring: CRing, numbers: CMemory, count: int, /) -> int: ...
    def au_ring_disarm(self, ring: CRing, user_data: int, /) -> int: ...
    def au_ring_turn(self, ring: CRing, woken: int, /) -> int: ...
    def au_ring_wait(self, ring: CRing, min_complete: int, time_ns: int, min_wait_usec: int, flags: int, /) -> int: ...
    def au_ring_wait_slot(self, ring: CRing, min_complete: int, slot: int, flags: int, /) -> int: ...
    def au_ring_peek(self, ring: CRing, /) -> int: ...
    def au_ring_peeked(self, ring: CRing, /) -> int: ...
    def au_ring_advance(self, ring: CRing, count: int, /) -> int: ...
    def au_ring_close(self, ring: CRing, /) -> int: ...
    def au_prepare(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        offset: int,
        address: int,
        length: int,
        op_flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_memory(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        memory: CMemory,
        capacity: int,
        start: int,
        length: int,
        offset: int,
        op_flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_fixed(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        buffers: CBuffers,
        key: int,
        start: int,
        length: int,
        offset: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_fixed_vector(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        buffers: CBuffers,
        key: int,
        vectors: CMemory,
        ranges: CMemory,
        count: int,
        offset: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_splice(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        offset: int,
        source: int,
        source_offset: int,
        length: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_select(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        group: CGroup,
        length: int,
        offset: int,
        op_flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_multishot(
        self, ring: CRing, user_data: int, opcode: int, fd: int, group: CGroup, total: int, how: int, /
    ) -> int: ...
    def au_prepare_multishot_message(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        group: CGroup,
        message: CStruct,
        op_flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_select_message(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        group: CGroup,
        message: CStruct,
        op_flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_socket_command(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        command: int,
        level: int,
        option: int,
        memory: CMemory,
        length: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_slot(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        offset: int,
        length: int,
        op_flags: int,
        slot: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_path(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        first: CMemory,
        second: CMemory,
        third: CMemory,
        length: int,
        op_flags: int,
        slot: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_array(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        array: CMemory,
        count: int,
        slot: int,
        op_flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_waitid(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        number: int,
        idtype: int,
        info: CMemory,
        options: int,
        how: int,
        /,
    ) -> int: ...
    def au_siginfo_size(self, /) -> int: ...
    def au_siginfo_read(self, info: CMemory, fields: CMemory, /) -> None: ...
    def au_prepare_futex(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        memory: CMemory,
        capacity: int,
        start: int,
        value: int,
        mask: int,
        flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_futex_set(
        self, waiter: CStruct, memory: CMemory, capacity: int, start: int, value: int, flags: int, /
    ) -> int: ...
    def au_prepare_futexes(
        self, ring: CRing, user_data: int, opcode: int, waiters: CMemory, count: int, how: int, /
    ) -> int: ...
    def au_futex_pass_on(self, memory: CMemory, capacity: int, start: int, mask: int, flags: int, /) -> int: ...
    def au_files_register(self, ring: CRing, fds: CMemory, count: int, /) -> int: ...
    def au_files_unregister(self, ring: CRing, /) -> int: ...
    def au_files_update(self, ring: CRing, index: int, fds: CMemory, count: int, /) -> int: ...
    def au_slot_serial(self, ring: CRing, index: int, /) -> int: ...
    def au_slot_set(self, ring: CRing, index: int, serial: int, /) -> int: ...
    def au_slots_used(self, ring: CRing, /) -> int: ...
    def au_socket_kind(self, fd: int, kind: CMemory, /) -> int: ...
    def au_read_cached(
        self,
        ring: CRing,
        fd: int,
        memory: CMemory | bytes,
        capacity: int,
        start: int,
        length: int,
        offset: int,
        waited: int,
        /,
    ) -> int: ...
    def au_buffers_init(self, buffers: CBuffers, ring: CRing, slots: CMemory, count: int, /) -> None: ...
    def au_buffers_key(self, buffers: CBuffers, index: int, /) -> int: ...
    def au_buffers_size(self, buffers: CBuffers, key: int, /) -> int: ...
    def au_buffers_register(
        self, buffers: CBuffers, memories: CMemory, sizes: CMemory, tags: CMemory, flags: int, /
    ) -> int: ...
    def au_buffers_update(
        self, buffers: CBuffers, index: int, count: int, memories: CMemory, sizes: CMemory, tags: CMemory, /
    ) -> int: ...
    def au_buffers_clone(
        self, buffers: CBuffers, index: int, source: CBuffers, source_index: int, count: int, flags: int, /
    ) -> int: ...
    def au_ring_can_clone(self, ring: CRing, /) -> int: ...
    def au_buffers_unregister(self, buffers: CBuffers, /) -> int: ...
    def au_buffers_lend(self, buffers: CBuffers, key: int, /) -> int: ...
    def au_buffers_give_back(self, buffers: CBuffers, key: int, /) -> int: ...
    def au_group_init(
        self, group: CGroup, ring: CRing, base: CMemory, size: int, count: int, group_id: int, /
    ) -> int: ...
    def au_group_share(self, group: CGroup, shares: CMemory, incremental: int, tagged: int, /) -> None: ...
    def au_group_take_part(self, group: CGroup, flags: int, length: int, /) -> int: ...
    def au_group_forget(self, group: CGroup, /) -> None: ...
    def au_group_register(self, group: CGroup, /) -> int: ...
    def au_group_unregister(self, group: CGroup, /) -> int: ...
    def au_group_grow(self, group: CGroup, count: int, /) -> int: ...
    def au_group_take(self, group: CGroup, buffer_id: int, /) -> int: ...
    def au_group_release(self, group: CGroup, part: int, /) -> int: ...
    def au_group_add(self, group: CGroup, part: int, /) -> int: ...
    def au_group_advance(self, group: CGroup, count: int, /) -> int: ...
    def au_group_cq_advance(self, group: CGroup, completions: int, buffers: int, /) -> int: ...
    def au_group_head(self, group: CGroup, /) -> int: ...
    def au_group_still_has(self, group: CGroup, buffer_id: int, /) -> int: ...
    def au_group_close(self, group: CGroup, /) -> None: ...
    def au_message_add(self, message: CStruct, memory: CMemory, capacity: int, start: int, length: int, /) -> int: ...
    def au_message_add_fixed(
        self, message: CStruct, buffers: CBuffers, key: int, start: int, length: int, /
    ) -> int: ...
    def au_message_address(self, message: CStruct, address: bytes, size: int, /) -> int: ...
    def au_message_control(self, message: CStruct, memory: CMemory, capacity: int, /) -> int: ...
    def au_message_room(self, message: CStruct, name_size: int, control_size: int, /) -> int: ...
    def au_message_name(self, message: CStruct, name: CMemory, room: int, /) -> int: ...
    def au_message_control_size(self, message: CStruct, /) -> int: ...
    def au_message_flags(self, message: CStruct, /) -> int: ...
    def au_prepare_receive_message(
        self, ring: CRing, user_data: int, opcode: int, fd: int, message: CStruct, op_flags: int, how: int, /
    ) -> int: ...
    def au_prepare_vector(
        self, ring: CRing, user_data: int, opcode: int, fd: int, message: CStruct, offset: int, how: int, /
    ) -> int: ...
    def au_prepare_message(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        message: CStruct,
        buffers: CBuffers,
        key: int,
        op_flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_prepare_send_fixed(
        self,
        ring: CRing,
        user_data: int,
        opcode: int,
        fd: int,
        buffers: CBuffers,
        key: int,
        start: int,
        length: int,
        op_flags: int,
        how: int,
        /,
    ) -> int: ...
    def au_sender_init(self, sender: CSender, ring: CRing, fd: int, number: int, /) -> int: ...
    def au_sender_add_buffer(self, sender: CSender, group: CGroup, part: int, length: int, /) -> int: ...
    def au_sender_add_memory(self, sender: CSender, memory: CMemory, length: int, /) -> int: ...
    def au_sender_add_copy(self, sender: CSender, data: bytes, length: int, /) -> int: ...
    def au_sender_drop(self, sender: CSender, failure: int, /) -> int: ...
    def au_sender_close(self, sender: CSender, /) -> None: ...
    AU_OP_NOP: Final[int]
    AU_OP_READV: Final[int]
    AU_OP_WRITEV: Final[int]
    AU_OP_FSYNC: Final[int]
    AU_OP_READ_FIXED: Final[int]
    AU_OP_WRITE_FIXED: Final[int]
    AU_OP_POLL_ADD: Final[int]
    AU_OP_POLL_REMOVE: Final[int]
    AU_OP_SYNC_FILE_RANGE: Final[int]
    AU_OP_SENDMSG: Final[int]
    AU_OP_RECVMSG: Final[int]
    AU_OP_TIMEOUT: Final[int]
    AU_OP_TIMEOUT_REMOVE: Final[int]
    AU_OP_ACCEPT: Final[int]
    AU_OP_ASYNC_CANCEL: Final[int]
    AU_OP_LINK_TIMEOUT: Final[int]
    AU_OP_CONNECT: Final[int]
    AU_OP_FALLOCATE: Final[int]
    AU_OP_OPENAT: Final[int]
    AU_OP_CLOSE: Final[int]
    AU_OP_FILES_UPDATE: Final[int]
    AU_OP_STATX: Final[int]
    AU_OP_READ: Final[int]
    AU_OP_WRITE: Final[int]
    AU_OP_FADVISE: Final[int]
    AU_OP_MADVISE: Final[int]
    AU_OP_SEND: Final[int]
    AU_OP_RECV: Final[int]
    AU_OP_OPENAT2: Final[int]
    AU_OP_EPOLL_CTL: Final[int]
    AU_OP_SPLICE: Final[int]
    AU_OP_PROVIDE_BUFFERS: Final[int]
    AU_OP_REMOVE_BUFFERS: Final[int]
    AU_OP_TEE: Final[int]
    AU_OP_SHUTDOWN: Final[int]
    AU_OP_RENAMEAT: Final[int]
    AU_OP_UNLINKAT: Final[int]
    AU_OP_MKDIRAT: Final[int]
    AU_OP_SYMLINKAT: Final[int]
    AU_OP_LINKAT: Final[int]
    AU_OP_MSG_RING: Final[int]
    AU_OP_FSETXATTR: Final[int]
    AU_OP_SETXATTR: Final[int]
    AU_OP_FGETXATTR: Final[int]
    AU_OP_GETXATTR: Final[int]
    AU_OP_SOCKET: Final[int]
    AU_OP_URING_CMD: Final[int]
    AU_OP_SEND_ZC: Final[int]
    AU_OP_SENDMSG_ZC: Final[int]
    AU_OP_READ_MULTISHOT: Final[int]
    AU_OP_WAITID: Final[int]
    AU_OP_FUTEX_WAIT: Final[int]
    AU_OP_FUTEX_WAKE: Final[int]
    AU_OP_FUTEX_WAITV: Final[int]
    AU_OP_FIXED_FD_INSTALL: Final[int]
    AU_OP_FTRUNCATE: Final[int]
    AU_OP_BIND: Final[int]
    AU_OP_LISTEN: Final[int]
    AU_OP_RECV_ZC: Final[int]
    AU_OP_EPOLL_WAIT: Final[int]
    AU_OP_READV_FIXED: Final[int]
    AU_OP_WRITEV_FIXED: Final[int]
    AU_OP_PIPE: Final[int]
    AU_SETUP_CQSIZE: Final[int]
    AU_SETUP_CLAMP: Final[int]
    AU_SETUP_R_DISABLED: Final[int]
    AU_SETUP_SUBMIT_ALL: Final[int]
    AU_SETUP_COOP_TASKRUN: Final[int]
    AU_SETUP_TASKRUN_FLAG: Final[int]
    AU_SETUP_SINGLE_ISSUER: Final[int]
    AU_SETUP_DEFER_TASKRUN: Final[int]
    AU_SETUP_NO_SQARRAY: Final[int]
    AU_FEAT_SINGLE_MMAP: Final[int]
    AU_FEAT_NODROP: Final[int]
    AU_FEAT_SUBMIT_STABLE: Final[int]
    AU_FEAT_RW_CUR_POS: Final[int]
    AU_FEAT_CUR_PERSONALITY: Final[int]
    AU_FEAT_FAST_POLL: Final[int]
    AU_FEAT_POLL_32BITS: Final[int]
    AU_FEAT_SQPOLL_NONFIXED: Final[int]
    AU_FEAT_EXT_ARG: Final[int]
    AU_FEAT_NATIVE_WORKERS: Final[int]
    AU_FEAT_RSRC_TAGS: Final[int]
    AU_FEAT_CQE_SKIP: Final[int]
    AU_FEAT_LINKED_FILE: Final[int]
    AU_FEAT_REG_REG_RING: Final[int]
    AU_FEAT_RECVSEND_BUNDLE: Final[int]
    AU_FEAT_MIN_TIMEOUT: Final[int]
    AU_FEAT_RW_ATTR: Final[int]
    AU_FEAT_NO_IOWAIT: Final[int]
    AU_SQE_FIXED_FILE: Final[int]
    AU_SQE_IO_DRAIN: Final[int]
    AU_SQE_IO_LINK: Final[int]
    AU_SQE_IO_HARDLINK: Final[int]
    AU_SQE_ASYNC: Final[int]
    AU_SQE_BUFFER_SELECT: Final[int]
    AU_SQE_CQE_SKIP_SUCCESS: Final[int]
    AU_CQE_F_BUFFER: Final[int]
    AU_CQE_F_MORE: Final[int]
    AU_CQE_F_SOCK_NONEMPTY: Final[int]
    AU_CQE_F_NOTIF: Final[int]
    AU_CQE_F_BUF_MORE: Final[int]
    AU_PBUF_RING_MMAP: Final[int]
    AU_PBUF_RING_INC: Final[int]
    AU_CQE_BUFFER_SHIFT: Final[int]
    AU_RECVSEND_POLL_FIRST: Final[int]
    AU_RECVSEND_FIXED_BUF: Final[int]
    AU_SEND_ZC_REPORT_USAGE: Final[int]
    AU_RECV_MULTISHOT: Final[int]
    AU_RECVSEND_BUNDLE: Final[int]
    AU_ACCEPT_MULTISHOT: Final[int]
    AU_POLL_ADD_MULTI: Final[int]
    AU_CANCEL_ALL: Final[int]
    AU_CANCEL_FD: Final[int]
    AU_CANCEL_ANY: Final[int]
    AU_FSYNC_DATASYNC: Final[int]
    AU_AT_FDCWD: Final[int]
    AU_RESOLVE_NO_XDEV: Final[int]
    AU_RESOLVE_NO_MAGICLINKS: Final[int]
    AU_RESOLVE_NO_SYMLINKS: Final[int]
    AU_RESOLVE_BENEATH: Final[int]
    AU_RESOLVE_IN_ROOT: Final[int]
    AU_RESOLVE_CACHED: Final[int]
    AU_AT_SYMLINK_NOFOLLOW: Final[int]
    AU_AT_REMOVEDIR: Final[int]
    AU_AT_SYMLINK_FOLLOW: Final[int]
    AU_AT_NO_AUTOMOUNT: Final[int]
    AU_AT_EMPTY_PATH: Final[int]
    AU_AT_STATX_FORCE_SYNC: Final[int]
    AU_AT_STATX_DONT_SYNC: Final[int]
    AU_RENAME_NOREPLACE: Final[int]
    AU_RENAME_EXCHANGE: Final[int]
    AU_RENAME_WHITEOUT: Final[int]
    AU_STATX_TYPE: Final[int]
    AU_STATX_MODE: Final[int]
    AU_STATX_NLINK: Final[int]
    AU_STATX_UID: Final[int]
    AU_STATX_GID: Final[int]
    AU_STATX_ATIME: Final[int]
    AU_STATX_MTIME: Final[int]
    AU_STATX_CTIME: Final[int]
    AU_STATX_INO: Final[int]
    AU_STATX_SIZE: Final[int]
    AU_STATX_BLOCKS: Final[int]
    AU_STATX_BTIME: Final[int]
    AU_STATX_MNT_ID: Final[int]
    AU_STATX_DIOALIGN: Final[int]
    AU_STATX_MNT_ID_UNIQUE: Final[int]
    AU_STATX_SUBVOL: Final[int]
    AU_STATX_WRITE_ATOMIC: Final[int]
    AU_STATX_DIO_READ_ALIGN: Final[int]
    AU_STATX_ATTR_COMPRESSED: Final[int]
    AU_STATX_ATTR_IMMUTABLE: Final[int]
    AU_STATX_ATTR_APPEND: Final[int]
    AU_STATX_ATTR_NODUMP: Final[int]
    AU_STATX_ATTR_ENCRYPTED: Final[int]
    AU_STATX_ATTR_AUTOMOUNT: Final[int]
    AU_STATX_ATTR_MOUNT_ROOT: Final[int]
    AU_STATX_ATTR_VERITY: Final[int]
    AU_STATX_ATTR_DAX: Final[int]
    AU_STATX_ATTR_WRITE_ATOMIC: Final[int]
    AU_FALLOC_FL_KEEP_SIZE: Final[int]
    AU_FALLOC_FL_PUNCH_HOLE: Final[int]
    AU_FALLOC_FL_COLLAPSE_RANGE: Final[int]
    AU_FALLOC_FL_ZERO_RANGE: Final[int]
    AU_FALLOC_FL_INSERT_RANGE: Final[int]
    AU_FALLOC_FL_UNSHARE_RANGE: Final[int]
    AU_SYNC_FILE_RANGE_WAIT_BEFORE: Final[int]
    AU_SYNC_FILE_RANGE_WRITE: Final[int]
    AU_SYNC_FILE_RANGE_WAIT_AFTER: Final[int]
    AU_RWF_HIPRI: Final[int]
    AU_RWF_DSYNC: Final[int]
    AU_RWF_SYNC: Final[int]
    AU_RWF_NOWAIT: Final[int]
    AU_RWF_APPEND: Final[int]
    AU_RWF_NOAPPEND: Final[int]
    AU_RWF_ATOMIC: Final[int]
    AU_RWF_DONTCACHE: Final[int]
    AU_MADV_COLD: Final[int]
    AU_MADV_PAGEOUT: Final[int]
    AU_MADV_POPULATE_READ: Final[int]
    AU_MADV_POPULATE_WRITE: Final[int]
    AU_MADV_COLLAPSE: Final[int]
    AU_FUTEX2_SIZE_U32: Final[int]
    AU_FUTEX2_PRIVATE: Final[int]
    AU_FIXED_FD_NO_CLOEXEC: Final[int]
    AU_FILES_EMPTY: Final[int]
    AU_FILES_SKIP: Final[int]
    AU_FILE_INDEX_ALLOC: Final[int]
    AU_SQ_CQ_OVERFLOW: Final[int]
    AU_SQ_TASKRUN: Final[int]
    AU_CQ_EVENTFD_DISABLED: Final[int]
    AU_ENTER_GETEVENTS: Final[int]
    AU_ENTER_EXT_ARG: Final[int]
    AU_ENTER_ABS_TIMER: Final[int]
    AU_ENTER_EXT_ARG_REG: Final[int]
    AU_REGISTER_BUFFERS: Final[int]
    AU_UNREGISTER_BUFFERS: Final[int]
    AU_REGISTER_FILES: Final[int]
    AU_UNREGISTER_FILES: Final[int]
    AU_REGISTER_EVENTFD: Final[int]
    AU_UNREGISTER_EVENTFD: Final[int]
    AU_REGISTER_FILES_UPDATE: Final[int]
    AU_REGISTER_PROBE: Final[int]
    AU_REGISTER_RESTRICTIONS: Final[int]
    AU_REGISTER_ENABLE_RINGS: Final[int]
    AU_REGISTER_FILES2: Final[int]
    AU_REGISTER_FILES_UPDATE2: Final[int]
    AU_REGISTER_BUFFERS2: Final[int]
    AU_REGISTER_BUFFERS_UPDATE: Final[int]
    AU_REGISTER_PBUF_RING: Final[int]
    AU_UNREGISTER_PBUF_RING: Final[int]
    AU_REGISTER_FILE_ALLOC_RANGE: Final[int]
    AU_REGISTER_PBUF_STATUS: Final[int]
    AU_REGISTER_CLOCK: Final[int]
    AU_REGISTER_CLONE_BUFFERS: Final[int]
    AU_REGISTER_MEM_REGION: Final[int]
    AU_MEM_REGION_TYPE_USER: Final[int]
    AU_MEM_REGION_REG_WAIT_ARG: Final[int]
    AU_REG_WAIT_TS: Final[int]
    AU_RESTRICTION_REGISTER_OP: Final[int]
    AU_RESTRICTION_SQE_OP: Final[int]
    AU_RESTRICTION_SQE_FLAGS_ALLOWED: Final[int]
    AU_RESTRICTION_SQE_FLAGS_REQUIRED: Final[int]
    AU_RSRC_REGISTER_SPARSE: Final[int]
    AU_CLONE_DST_REPLACE: Final[int]
    AU_MAX_TRANSFER: Final[int]
    AU_MAX_BUFFERS: Final[int]
    AU_MAX_VECTORS: Final[int]
    AU_MAX_BUFFER_BYTES: Final[int]
    AU_MAX_CONTROL: Final[int]
    AU_MAX_FUTEXES: Final[int]
    AU_MAX_FILES: Final[int]
    AU_MAX_NAME: Final[int]
    AU_MESSAGE_HEADER: Final[int]
    AU_MSG_DATA: Final[int]
    AU_SOCKET_SIOCINQ: Final[int]
    AU_SOCKET_SIOCOUTQ: Final[int]
    AU_SOCKET_GETSOCKOPT: Final[int]
    AU_SOCKET_SETSOCKOPT: Final[int]
    AU_MAX_GROUP_ENTRIES: Final[int]
    AU_MAX_GROUP_ID: Final[int]
    AU_CLOSED: Final[int]
    AU_FORKED: Final[int]
    AU_WRONG_THREAD: Final[int]
    AU_DISABLED: Final[int]
    AU_FULL: Final[int]
    AU_BAD_LENGTH: Final[int]
    AU_BAD_OFFSET: Final[int]
    AU_BAD_INDEX: Final[int]
    AU_NOT_LENT: Final[int]
    AU_RING_FD: Final[int]
    AU_FORBIDDEN: Final[int]
    AU_BAD_SLOT: Final[int]
    AU_REPLACED: Final[int]
    AU_TOO_MANY: Final[int]
    AU_LATE_SLOT: Final[int]
    AU_UNTAGGED: Final[int]
    AU_NOT_IN_PARTS: Final[int]
    AU_AGAIN: Final[int]
    AU_EVENTS_MAX: Final[int]
    AU_GUARD_FD: Final[int]
    AU_RWF_SHIFT: Final[int]
    AU_RWF_MASK: Final[int]
    AU_SLOTS_AT_ONCE: Final[int]
    AU_RING_ENABLED: Final[int]
    AU_HIGH_WATER: Final[int]
    AU_COPY_MAX: Final[int]
    AU_TAG_BIT: Final[int]
    AU_TAG_SHIFT: Final[int]
    AU_CQE_TAKEN: Final[int]
    AU_BUFFER_ID_BITS: Final[int]
    AU_BUFFER_ID_MASK: Final[int]
    AU_FIRST_SLOT: Final[int]
    AU_CACHED_MAX: Final[int]
    AU_WHOLE: Final[int]
    AU_SLOT_FILLED: Final[int]
    AU_SLOT_MASK: Final[int]
    AU_MAP_HUGETLB: Final[int]

ffi: _FFI
lib: _Lib
