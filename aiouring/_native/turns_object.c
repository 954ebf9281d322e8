/* The row of a ring's turns (_turns.py), with the walk through what a turn of the core has brought. */
#include "objects.h"

static PyMemberDef turns_members[] = {
    FIXED("_raw", TURNS_RAW), FIXED("loop", TURNS_LOOP), FIXED("inflight", TURNS_INFLIGHT),
    FIELD("_scheduled", TURNS_SCHEDULED), FIELD("_position", TURNS_POSITION),
    FIELD("_undelivered", TURNS_UNDELIVERED), FIELD("takers", TURNS_TAKERS), FIELD("_queued", TURNS_QUEUED),
    FIELD("due", TURNS_DUE), FIELD("_cancels_due", TURNS_CANCELS_DUE), FIELD("_starts_due", TURNS_STARTS_DUE),
    FIELD("_room_wanted", TURNS_ROOM_WANTED), FIELD("_groups", TURNS_GROUPS), FIELD("_emptied", TURNS_EMPTIED),
    FIELD("_retries", TURNS_RETRIES), FIELD("_usable", TURNS_USABLE), FIELD("_is_running", TURNS_IS_RUNNING),
    {NULL, 0, 0, 0, NULL},
};

ROW_OF(turns, TURNS_FIELDS, TURNS_PLACES)

/* `raw` is what `address` is of: it is kept as long as this. */
static int turns_init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(named))
{
    PyObject *loop, *raw, *inflight;
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "OOK", &loop, &raw, &address) || !(inflight = PyDict_New()))
        return -1;
    set(self, TURNS_LOOP, loop);
    set(self, TURNS_RAW, raw);
    put(self, TURNS_INFLIGHT, inflight);
    set(self, TURNS_SCHEDULED, Py_False);
    set(self, TURNS_UNDELIVERED, Py_False);
    put(self, TURNS_POSITION, PyLong_FromLong(0));
    put(self, TURNS_RETRIES, PyLong_FromLong(0));
    POINTER(self, TURNS_RING) = (void *)(uintptr_t)address;
    return 0;
}

static au_ring *ring_of(PyObject *self) { return POINTER(self, TURNS_RING); }

/* Without a ring it is half made. */
static bool is_closed(PyObject *self) { return !ring_of(self) || ring_of(self)->state == RING_CLOSED; }

static int forget_request(PyObject *self, PyObject *key)
{
    return PyDict_DelItem(AT(self, TURNS_INFLIGHT), key);
}

/* The completion of a request that somebody awaits. */
static int resolve(PyObject *self, PyObject *request, PyObject *key, const int64_t *event)
{
    PyObject *waiter = AT(request, REQUEST_WAITER);
    PyObject *result = PyLong_FromLongLong(event[1]), *flags = PyLong_FromLongLong(event[2]);
    if (!result || !flags) {
        Py_XDECREF(result);
        Py_XDECREF(flags);
        return -1;
    }
    put(request, REQUEST_RESULT, result);
    put(request, REQUEST_FLAGS, flags);
    if (resolve_future(waiter, result) < 0)
        return -1;
    set(request, REQUEST_ENDED, Py_True);
    if (!is_none(request, REQUEST_LEASE))
        return tell(self, name__end, request, NULL);
    return forget_request(self, key);
}

static int done_with(PyObject *said)
{
    Py_XDECREF(said);
    return said ? 0 : -1;
}

/* The completion of a request that has several, or that nobody awaits. */
static int hand_on(PyObject *self, PyObject *request, PyObject *key, const int64_t *event)
{
    long long result = event[1], flags = event[2];
    bool more = flags & AU_CQE_F_MORE;
    /* It was started again, and then interrupted. */
    bool again = !more && PyObject_RichCompareBool(AT(request, REQUEST_USER_DATA), key, Py_EQ) != 1;
    int rc = 0;
    if (PyObject_TypeCheck(request, receive_type) && is_true(request, RECEIVE_DIRECT)) {
        if (!again)
            rc = receive_arrive(request, result, flags);
    } else {
        PyObject *arrived = PyObject_GetAttr(request, name_arrived);
        if (arrived == Py_None) {
            Py_DECREF(arrived);
            return done_with(more ? PyObject_CallMethod(request, "noted", "L", result)
                                  : PyObject_CallMethod(self, "_ended_alone", "OLL", request, result, flags));
        }
        if (!arrived || !again)
            rc = arrived ? done_with(PyObject_CallFunction(arrived, "LL", result, flags)) : -1;
        Py_XDECREF(arrived);
    }
    return rc < 0 || more ? rc : forget_request(self, key);
}

static int deliver_one(PyObject *self, const int64_t *event)
{
    PyObject *key = PyLong_FromLongLong(event[0]);
    if (!key)
        return -1;
    PyObject *request = PyDict_GetItemWithError(AT(self, TURNS_INFLIGHT), key);
    Py_XINCREF(request);
    int rc;
    if (!request)
        rc = PyErr_Occurred() ? -1 : tell(self, name__of_a_sender, key, NULL);
    else if (!is_a(request, request_type))
        rc = -1;
    else if (!is_none(request, REQUEST_WAITER) && !(event[2] & AU_CQE_F_MORE))
        rc = resolve(self, request, key, event);
    else
        rc = hand_on(self, request, key, event);
    Py_XDECREF(request);
    Py_DECREF(key);
    return rc;
}

/* Complete the requests of the batch that lies in the ring's memory, from `_position` on.  Where something is raised
 * `_position` stays: that step is taken again. */
static int deliver(PyObject *self, long count)
{
    au_ring *ring = ring_of(self);
    long position = PyLong_AsLong(AT(self, TURNS_POSITION));
    int rc = PyErr_Occurred() || !ring || position < 0 ? -1 : 0;
    if (rc < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "there is no batch to deliver");
    for (; rc == 0 && position < count && position < (long)ring->ready; position += rc == 0)
        rc = deliver_one(self, &ring->events[3 * position]);
    if (position >= 0)
        put(self, TURNS_POSITION, PyLong_FromLong(position));
    return rc;
}

/* Take a turn before the loop sleeps. */
static int schedule(PyObject *self)
{
    if (is_true(self, TURNS_SCHEDULED) || is_closed(self))
        return 0;
    set(self, TURNS_SCHEDULED, Py_True);
    PyObject *loop = AT(self, TURNS_LOOP), *flush = PyObject_GetAttr(self, name__flush);
    int rc = flush ? tell(loop, name_call_soon, flush, NULL) : -1;
    Py_XDECREF(flush);
    if (rc == 0)
        return 0;
    set(self, TURNS_SCHEDULED, Py_False);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *closed = PyObject_CallMethodObjArgs(loop, name_is_closed, NULL);
    bool in_vain = closed == Py_True;
    Py_XDECREF(closed);
    PyErr_Restore(in_vain ? NULL : type, in_vain ? NULL : value, in_vain ? NULL : trace);
    if (in_vain) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(trace);
    }
    return in_vain ? 0 : -1;
}

static bool some_in(PyObject *things)
{
    Py_ssize_t count = things ? PyObject_Size(things) : -1;
    if (count < 0)
        PyErr_Clear(); /* it is half made, or being collected */
    return count > 0;
}

static bool some(PyObject *self, int field) { return some_in(AT(self, field)); }

/* Whether somebody waits for a buffer of a group. */
static bool somebody_waits(PyObject *self)
{
    PyObject *group;
    Py_ssize_t at = 0;
    while (PyDict_Next(AT(self, TURNS_GROUPS), &at, NULL, &group)) {
        PyObject *waiting = PyObject_GetAttr(group, name_waiting);
        bool yes = some_in(waiting);
        Py_XDECREF(waiting);
        if (yes)
            return true;
    }
    return false;
}

/* The turn of the core and the delivery of what it has brought. */
static int turn_and_deliver(PyObject *self, int woken, int *code)
{
    put(self, TURNS_POSITION, PyLong_FromLong(0));
    set(self, TURNS_UNDELIVERED, Py_True);
    Py_BEGIN_ALLOW_THREADS
    *code = au_ring_turn(ring_of(self), woken);
    Py_END_ALLOW_THREADS
    if (*code > 0) {
        PyObject *count = PyLong_FromLong(*code & ~AU_AGAIN);
        int rc = count ? tell(self, name__deliver, count, NULL) : -1;
        Py_XDECREF(count);
        if (rc < 0)
            return -1;
        if ((!some(self, TURNS_TAKERS) || *code & AU_AGAIN) && schedule(self) < 0) /* a turn follows takers at once */
            return -1; /* else it comes behind those whom that woke */
    }
    set(self, TURNS_UNDELIVERED, Py_False);
    return 0;
}

static int take_turn(PyObject *self, int woken)
{
    int code;
    if (!ring_of(self)) {
        PyErr_SetString(PyExc_RuntimeError, "the ring is not bound yet");
        return -1;
    }
    bool prepare = is_true(self, TURNS_UNDELIVERED) || some(self, TURNS_DUE) || some(self, TURNS_QUEUED);
    if ((prepare && tell(self, name__prepare, NULL, NULL) < 0) || turn_and_deliver(self, woken, &code) < 0) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        if (tell(self, name__interrupted, NULL, NULL) == 0) {
            PyErr_Restore(type, value, trace);
        } else {
            Py_XDECREF(type);
            Py_XDECREF(value);
            Py_XDECREF(trace);
        }
        return -1;
    }
    bool settled = code >= 0 && !some(self, TURNS_QUEUED) && !some(self, TURNS_CANCELS_DUE) &&
                   !some(self, TURNS_STARTS_DUE) && !some(self, TURNS_ROOM_WANTED) && is_none(self, TURNS_EMPTIED) &&
                   !PyObject_IsTrue(AT(self, TURNS_RETRIES)) && !somebody_waits(self);
    if (settled)
        return 0;
    PyObject *number = PyLong_FromLong(code);
    int rc = number ? tell(self, name__settle, number, NULL) : -1;
    Py_XDECREF(number);
    return rc;
}

static int turn_and_takers(PyObject *self, int woken)
{
    if (!is_closed(self) && take_turn(self, woken) < 0)
        return -1;
    return some(self, TURNS_TAKERS) ? tell(AT(self, TURNS_TAKERS), name_call, NULL, NULL) : 0;
}

static PyObject *none_or_error(int rc)
{
    if (rc < 0)
        return NULL;
    return none();
}

static PyObject *turns_turn(PyObject *self, PyObject *woken)
{
    return none_or_error(take_turn(self, PyObject_IsTrue(woken)));
}

static PyObject *turns_flush(PyObject *self, PyObject *Py_UNUSED(none))
{
    set(self, TURNS_SCHEDULED, Py_False);
    return none_or_error(turn_and_takers(self, 0));
}

static PyObject *turns_wake(PyObject *self, PyObject *Py_UNUSED(none))
{
    return none_or_error(is_closed(self) ? 0 : turn_and_takers(self, 1));
}

static PyObject *turns_ask(PyObject *self, PyObject *Py_UNUSED(none)) { return none_or_error(schedule(self)); }

static PyObject *turns_deliver(PyObject *self, PyObject *count)
{
    long events = PyLong_AsLong(count);
    return none_or_error(PyErr_Occurred() ? -1 : deliver(self, events));
}

static PyMethodDef turns_methods[] = {
    {"_turn", turns_turn, METH_O, "Take a turn, because the ring's eventfd has `woken` the loop or not."},
    {"_flush", turns_flush, METH_NOARGS, "The turn that was asked for, and then what takers do."},
    {"_wake", turns_wake, METH_NOARGS, "The turn that the eventfd has asked for, and then what takers do."},
    {"_deliver", turns_deliver, METH_O, "Complete the requests of the batch, from `_position` on."},
    {"ask_for_turn", turns_ask, METH_NOARGS, "Take a turn before the loop sleeps."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot turns_slots[] = {
    ROW_SLOTS(turns),
    {Py_tp_init, turns_init},
    {Py_tp_methods, turns_methods},
    {0, NULL},
};

static PyType_Spec turns_spec = {"aiouring._rows.TurnsRow", ROW_SIZE(TURNS_PLACES), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, turns_slots};
