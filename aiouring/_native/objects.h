/* What the parts of objects.c share.  See there for how it fits together. */
#ifndef AIOURING_OBJECTS_H
#define AIOURING_OBJECTS_H
#include "uring.h"

#include <stddef.h>
#include <structmember.h>

/* Every object here is a row of references, most of them attributes to Python; `at` is the row, by these names. */
enum { LEASE_HOME, LEASE_ARENA, LEASE_NUMBER, LEASE_LENGTH, LEASE_VIEW, LEASE_PINS, LEASE_ABANDONED, LEASE_ENDED,
       LEASE_FIELDS, LEASE_WEAK = LEASE_FIELDS, LEASE_PLACES };
enum { REQUEST_FD, REQUEST_FILE, REQUEST_HOLD, REQUEST_LEASE, REQUEST_RESULT, REQUEST_FLAGS, REQUEST_ENDED,
       REQUEST_WAITER, REQUEST_USER_DATA, REQUEST_PINNED, REQUEST_FIELDS };
enum { RECEIVE_ARRIVALS = REQUEST_FIELDS, RECEIVE_DRIVER, RECEIVE_GROUP, RECEIVE_EARLY, RECEIVE_READY, RECEIVE_TAKER,
       RECEIVE_NEW_FUTURE, RECEIVE_HIGH, RECEIVE_LOW, RECEIVE_TICKET, RECEIVE_ARMED, RECEIVE_OVER, RECEIVE_STOPPING,
       RECEIVE_DIRECT, RECEIVE_FIELDS, RECEIVE_TOLD = RECEIVE_FIELDS, RECEIVE_PLACES };
enum { TURNS_RAW, TURNS_LOOP, TURNS_INFLIGHT, TURNS_SCHEDULED, TURNS_POSITION, TURNS_UNDELIVERED, TURNS_TAKERS,
       TURNS_QUEUED, TURNS_DUE, TURNS_CANCELS_DUE, TURNS_STARTS_DUE, TURNS_ROOM_WANTED, TURNS_GROUPS, TURNS_EMPTIED,
       TURNS_RETRIES, TURNS_USABLE, TURNS_IS_RUNNING, TURNS_FIELDS,
       TURNS_RING = TURNS_FIELDS, TURNS_PLACES };
enum { SEND_RAW, SEND_DRIVER, SEND_GROUP, SEND_RAW_GROUP, SEND_BUFFER_TYPE, SEND_FIELDS,
       SEND_SENDER = SEND_FIELDS, SEND_GROUP_POINTER, SEND_PLACES };
enum { FILE_DRIVER, FILE_FD, FILE_CACHED, FILE_FIELDS };
enum { OPEN_RAW, OPEN_ORDER, OPEN_AHEAD, OPEN_POSITION, OPEN_WRITABLE, OPEN_THREAD, OPEN_FIELDS };

typedef struct row {
    PyObject_HEAD
    PyObject *at[];
} row;

#define ROW(object) ((row *)(object))
#define AT(object, field) (ROW(object)->at[field])
/* Behind the references: what a cffi object among them points to. */
#define POINTER(object, field) (((void **)ROW(object)->at)[field])
#define PLACE(field) (offsetof(row, at) + (field) * sizeof(PyObject *))
#define FIELD(name, field) {name, T_OBJECT_EX, PLACE(field), 0, NULL}
#define FIXED(name, field) {name, T_OBJECT_EX, PLACE(field), READONLY, NULL} /* what a pointer behind depends on */

static PyTypeObject *lease_type, *request_type, *receive_type, *turns_type, *send_type, *next_type, *file_type,
    *reading_type;
static PyObject *future_type, *invalid_state; /* asyncio's */
static PyObject *done; /* the awaitable that is over already */
static PyObject *zero; /* as all small integers, one object for ever */

#define NAMES(_) \
    _(append) _(arena) _(arrived) _(base) _(call) _(call_soon) _(cancel_soon) _(chunk) _(empty) _(is_closed) _(lease) \
    _(popleft) _(set_result) _(users) _(waiting) _(_arm) _(_busy) _(_concluded) _(_deliver) _(_drain) \
    _(_end) _(_flush) _(_interrupted) _(_never_released) _(_of_a_sender) _(_prepare) _(_private) _(_raise) \
    _(_read) _(_read_at) _(_refuse) _(_settle) _(_write_kept) _(_write_lease) _(_write_memory)
#define DECLARE(name) static PyObject *name_##name;
NAMES(DECLARE)

static void put(PyObject *object, int field, PyObject *value) /* steals `value` */
{
    PyObject *old = AT(object, field);
    AT(object, field) = value;
    Py_XDECREF(old);
}

static void set(PyObject *object, int field, PyObject *value)
{
    Py_INCREF(value);
    put(object, field, value);
}

/* What returns None.  Py_RETURN_NONE, as headers since 3.12 have it, adds no reference: Python 3.11 would run out. */
static PyObject *none(void)
{
    Py_INCREF(Py_None);
    return Py_None;
}

static bool is_true(PyObject *object, int field) { return AT(object, field) == Py_True; }
static bool is_none(PyObject *object, int field) { return AT(object, field) == Py_None; }

/* Whether it has the row of this type; else TypeError is set. */
static bool is_a(PyObject *object, PyTypeObject *type)
{
    bool yes = PyObject_TypeCheck(object, type);
    if (!yes)
        PyErr_Format(PyExc_TypeError, "%R has not the row that is needed here", object);
    return yes;
}

/* Call a method for what it does; returns -1 where it raised. */
static int tell(PyObject *object, PyObject *name, PyObject *one, PyObject *two)
{
    PyObject *said = PyObject_CallMethodObjArgs(object, name, one, two, NULL);
    Py_XDECREF(said);
    return said ? 0 : -1;
}

/* Resolve a future, unless that has been done, or it was cancelled: then its task will look by itself. */
static int resolve_future(PyObject *future, PyObject *result)
{
    Py_INCREF(future);
    int rc = tell(future, name_set_result, result, NULL);
    if (rc < 0 && PyErr_ExceptionMatches(invalid_state)) {
        PyErr_Clear();
        rc = 0;
    }
    Py_DECREF(future);
    return rc;
}

static int visit_row(PyObject *self, int fields, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (int i = 0; i < fields; i++)
        Py_VISIT(AT(self, i));
    return 0;
}

/* The collector breaks a cycle: what is left must stand being used by whoever dies in the same breath. */
static int clear_row(PyObject *self, int fields, int places)
{
    for (int i = fields; i < places; i++)
        POINTER(self, i) = NULL;
    for (int i = 0; i < fields; i++)
        set(self, i, Py_None);
    return 0;
}

static void drop_row(PyObject *self, int fields)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    for (int i = 0; i < fields; i++)
        Py_CLEAR(AT(self, i));
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Every attribute is None to begin with, so that none is missing whatever is done with an object that is half made. */
static PyObject *new_row(PyTypeObject *type, int fields)
{
    PyObject *self = PyType_GenericAlloc(type, 0);
    for (int i = 0; self && i < fields; i++)
        set(self, i, Py_None);
    return self;
}

#define VISIT_ROW(kind, fields) \
    static int kind##_traverse(PyObject *self, visitproc visit, void *arg) \
    { \
        return visit_row(self, fields, visit, arg); \
    }

#define DROP_ROW(kind, fields) \
    static void kind##_dealloc(PyObject *self) { drop_row(self, fields); }

#define NEW_ROW(kind, fields) \
    static PyObject *kind##_new(PyTypeObject *type, PyObject *args, PyObject *named) { return new_row(type, fields); }

#define CLEAR_ROW(kind, fields, places) \
    static int kind##_clear(PyObject *self) { return clear_row(self, fields, places); }

/* All that a row has to have; `fields` of its `places` are references. */
#define ROW_OF(kind, fields, places) \
    VISIT_ROW(kind, fields) CLEAR_ROW(kind, fields, places) DROP_ROW(kind, fields) NEW_ROW(kind, fields)

#define ROW_SLOTS(kind) \
    {Py_tp_new, kind##_new}, {Py_tp_traverse, kind##_traverse}, {Py_tp_clear, kind##_clear}, \
    {Py_tp_dealloc, kind##_dealloc}, {Py_tp_members, kind##_members}

#define ROW_SIZE(places) (int)PLACE(places)

#endif
