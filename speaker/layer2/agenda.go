package layer2

import (
	"container/heap"
	"time"
)

// task is something to do at a time. run returns when to run again, the zero Time for not again.
type task struct {
	at    time.Time
	run   func(now time.Time) time.Time
	index int // in the agenda, -1 outside
}

func newTask(run func(now time.Time) time.Time) *task { return &task{run: run, index: -1} }

// agenda is tasks in the order of their times.
type agenda struct{ tasks taskHeap }

// set plans t at a time, instead of the time that it was planned for.
func (a *agenda) set(t *task, at time.Time) {
	t.at = at
	if t.index >= 0 {
		heap.Fix(&a.tasks, t.index)
	} else {
		heap.Push(&a.tasks, t)
	}
}

// cancel takes t off the agenda.
func (a *agenda) cancel(t *task) {
	if t.index >= 0 {
		heap.Remove(&a.tasks, t.index)
	}
}

// next is the time of the first task.
func (a *agenda) next() (time.Time, bool) {
	if len(a.tasks) == 0 {
		return time.Time{}, false
	}
	return a.tasks[0].at, true
}

// due runs what is planned up to now.
func (a *agenda) due(now time.Time) {
	for len(a.tasks) > 0 && !a.tasks[0].at.After(now) {
		t := heap.Pop(&a.tasks).(*task)
		if again := t.run(now); !again.IsZero() {
			a.set(t, again)
		}
	}
}

type taskHeap []*task

func (h taskHeap) Len() int           { return len(h) }
func (h taskHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h taskHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *taskHeap) Push(x any) {
	t := x.(*task)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *taskHeap) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	t.index = -1
	return t
}
