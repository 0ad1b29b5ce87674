// Walks the folds of one MATMUL on the weight-stationary array: which weight row is loaded and which activation row enters,
// cycle by cycle.
//
// Time is divided into slots. With shadow weights a slot streams one fold while it loads the next one's weights; the first
// slot only loads, the last one only streams. Without, slots load and stream in turn. A slot ends as soon as all that it
// contains is done: a load takes ROWS cycles, a stream the fold's rows times the cycles of one row.

module npu_ws_sequencer
  import npu_machine::*;
  import npu_types::*;
(
    input  logic           clk,
    input  logic           rst,
    input  logic           start,
    input  job_t           job,         // from the cycle after `start`
    // the weights' read port
    output logic           weight_read,
    output logic    [31:0] weight_batch,
    output logic    [31:0] weight_k,
    output logic    [31:0] weight_n,
    // the activations' read port; held for all cycles of a row
    output logic           act_read,
    output logic    [31:0] act_batch,
    output logic    [31:0] act_m,
    output logic    [31:0] act_k,
    input  logic    [31:0] row_scale,   // of the row: multiplier and shift
    // what the array does with them
    output logic    [31:0] depth,       // elements of k from act_k on
    output logic           act_active,  // this cycle shows a byte of the activations
    output logic           act_high,    // it is the high byte
    output stream_t        stream,
    output token_t         token
);
  logic loading, feeding;  // what this slot still has to do
  logic loaded, more;      // this slot contains a load; folds remain to be loaded after it
  logic [31:0] load_row, feed_row;
  logic [PHASE_BITS-1:0] phase;

  logic [31:0] load_batch, load_n, load_k, feed_batch, feed_m, feed_n, feed_k;
  logic load_last, first_k, last_k, feed_last;

  // ---- where the two counters stand
  wire last_load_row = load_row == 32'(ROWS - 1);
  logic last_phase, w_wide, w_high;
  npu_phases phases (.job, .phase, .last_phase, .active(act_active), .a_high(act_high), .w_wide, .w_high);
  wire [31:0] rows_left = job.m - feed_m;
  wire [31:0] rows = rows_left < 32'(ACC_ROWS) ? rows_left : 32'(ACC_ROWS);
  wire last_feed_row = feed_row == rows - 1;

  wire load_ends = loading && last_load_row;
  wire feed_ends = feeding && last_feed_row && last_phase;
  wire slot_ends = (!loading || load_ends) && (!feeding || feed_ends) && (loading || feeding);
  wire more_now = load_ends ? !load_last : more;

  npu_folds load_folds (
      .clk, .restart(start), .advance(load_ends), .job,
      .batch(load_batch), .m0(), .n0(load_n), .k0(load_k), .first_k(), .last_k(), .last(load_last)
  );
  npu_folds feed_folds (
      .clk, .restart(start), .advance(feed_ends), .job,
      .batch(feed_batch), .m0(feed_m), .n0(feed_n), .k0(feed_k), .first_k, .last_k, .last(feed_last)
  );

  always_ff @(posedge clk) begin
    if (rst) begin
      {loading, feeding, loaded, more} <= '0;
    end else if (start) begin
      {loading, feeding, loaded, more} <= 4'b1011;
      {load_row, feed_row, phase} <= '0;
    end else begin
      if (loading) load_row <= load_ends ? '0 : load_row + 1;
      if (feeding) phase <= last_phase ? '0 : phase + 1;
      if (feeding && last_phase) feed_row <= last_feed_row ? '0 : feed_row + 1;
      more <= more_now;
      if (slot_ends) begin
        feeding <= loaded;
        loading <= more_now && (SHADOW_WEIGHTS || !loaded);
        loaded  <= more_now && (SHADOW_WEIGHTS || !loaded);
      end else begin
        if (load_ends) loading <= 1'b0;
        if (feed_ends) feeding <= 1'b0;
      end
    end
  end

  // ---- read ports. The weight chain takes the last row first: it ends deepest.
  assign weight_read = loading;
  assign weight_batch = load_batch;
  wire [31:0] chain_row = 32'(ROWS - 1) - load_row;
  assign weight_k = load_k + (paired(job) ? chain_row << 1 : chain_row);
  assign weight_n = load_n;
  assign act_read = feeding;
  assign act_batch = feed_batch;
  assign act_m = feed_m + feed_row;
  assign act_k = feed_k;

  assign depth = job.k - feed_k;

  assign stream = '{
      latch: feeding && feed_row == '0 && phase == '0,
      load: loading,
      w_wide: w_wide,
      w_high: w_high
  };

  wire [31:0] columns_left = job.n - feed_n;
  assign token = '{
      acc: '{
          valid: feeding,
          first_phase: phase == '0,
          last_phase: last_phase,
          first_fold: first_k && !job.acc_continue,
          byte_shift: 2'(act_high) + 2'(w_high),
          bank_row: BANK_BITS'(feed_row)
      },
      finished: feeding && last_phase && last_k && !job.acc_hold,
      last: feed_ends && feed_last,
      columns: columns_left < 32'(COLS) ? COLUMN_BITS'(columns_left) : COLUMN_BITS'(COLS),
      n0: feed_n,
      row_multiplier: row_scale[14:0],
      row_shift: row_scale[21:16]
  };
endmodule
